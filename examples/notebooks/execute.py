"""Execute the notebooks of this folder: from each .py file the .ipynb beside it, with its outputs.

    python examples/notebooks/execute.py            # all of them, one after the other
    python examples/notebooks/execute.py 01_tour    # one

The .py files are the sources, in Jupytext's percent format. Needs pip install 'raft-peft[notebooks]'.
"""

import argparse
from pathlib import Path

import jupytext  # type: ignore[import-untyped]
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
TIMEOUT = 3600  # seconds that a cell may take


def read_source(name: str) -> nbformat.NotebookNode:
    """The notebook as its .py file has it, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{number:02}"  # Jupytext's are random, and would differ after every execution
    return notebook


def executed(name: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, from a kernel that runs in this folder."""
    notebook = read_source(name)
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    return notebook


def main(names: list[str]) -> None:
    for name in names:
        print(name, flush=True)
        nbformat.write(executed(name), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    main(parser.parse_args().names)
