"""Which method wins on real data? Runs the comparisons of docs/results.md and writes the page.

    python benchmarks/results --data DATA --output OUTPUT
    python benchmarks/results --data DATA --output OUTPUT --quick
    python benchmarks/results --data DATA --output OUTPUT --only stsb_smollm2 tweets
    python benchmarks/results --data DATA --output OUTPUT --report

Run it again after it was interrupted, and it goes on with the runs that are not done. Several copies may run at once
on the same `--output`: each takes a table that no other is at. Two copies with OMP_NUM_THREADS=1 use two cores better
than one copy with two threads.

DATA holds the rows, and each table needs its own alone:

- `stsb/`: `train.csv` and `dev.csv` of STS-B (sentence 1, sentence 2, score; no header);
- `sentiment/tweets/`, `sentiment/product_reviews/`, `sentiment/movie_reviews/`: `train.jsonl`, `validation.jsonl`
  and, but for tweets, `test.jsonl`, of `text` and `ratings` from -4 to 4 (Hutto and Gilbert, ICWSM 2014);
- `emobank/`: `train.jsonl` and `validation.jsonl`, of `text`, `valence`, `arousal` and `dominance` from 1 to 5
  (Buechel and Hahn, EACL 2017);
- `judge/`: `train.jsonl` and `test.jsonl`, of `instruction`, `response`, `reference`, `rubric` and `ratings`, 1 to 5.

OUTPUT holds the runs, which `raft-peft compare` could have made too. The page is written anew after each table, from
the JSON files in the folder of its name beside it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from transformers import HfArgumentParser

# The folder of all benchmarks, as for a script that lies there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raft_peft.compare import compare_methods
from results.figures import figures_of, note_environment, read_figures, report_unfinished
from results.page import page
from results.pictures import PICTURES
from results.plan import known_speeds, measured_speed, plan
from results.prepared import Prepared
from results.tables import TABLES


@dataclass
class Arguments:
    data: str = field(metadata={"help": "Folder of the rows."})
    output: str = field(metadata={"help": "Folder of the runs. If it holds some, they are not done again."})
    page: str | None = field(
        default=None, metadata={"help": "By default docs/results.md, or with --quick results.md among the runs."}
    )
    models: str | None = field(
        default=None, metadata={"help": "A folder that holds the models by their names. By default the Hub."}
    )
    quick: bool = field(default=False, metadata={"help": "Every table at a small size, which says nothing."})
    only: list[str] | None = field(default=None, metadata={"help": "Some tables alone.", "choices": list(TABLES)})
    report: bool = field(default=False, metadata={"help": "Run nothing, and write the page from the runs there are."})


def main(args: Arguments) -> None:
    output = Path(args.output) / "quick" if args.quick else Path(args.output)
    page_path = output / "results.md" if args.quick else Path("docs/results.md")
    page_path = page_path if args.page is None else Path(args.page)
    names = list(TABLES) if args.only is None else args.only
    tables = [Prepared.of(TABLES[name], args.data, output, args.models, quick=args.quick) for name in names]
    for table in tables:
        if table.done():
            report_unfinished(table)
            write(table, args, page_path)
    print(plan(tables, _speeds(tables, output, measure=not args.quick and not args.report)), flush=True)
    if args.report:
        return
    failures: dict[str, str] = {}
    # A table that another copy is at comes last. It is then mostly done.
    waiting = [table for table in tables if not run(table, args, page_path, failures, timeout=0)]
    for table in waiting:
        run(table, args, page_path, failures, timeout=-1)
    if failures:
        raise SystemExit("\n".join(f"{name} failed: {reason}" for name, reason in failures.items()))


def run(table: Prepared, args: Arguments, page_path: Path, failures: dict[str, str], timeout: float) -> bool:
    """Run what a table lacks, and write the page.

    Args:
        table: the table.
        args: of the command.
        page_path: of the page.
        failures: where the reason is noted, should it fail.
        timeout: seconds to wait for another copy that is at it; -1 for as long as it takes.

    Returns:
        Whether it was run; False where another copy is at it.
    """
    name, folder = table.table.name, table.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=timeout):
            print(f"\n{table.table.title} ({name})", flush=True)
            if table.left():
                note_environment(folder, "cuda" if torch.cuda.is_available() else "cpu")
            compare_methods(table.settings)
            write(table, args, page_path)
    except Timeout:
        return False
    # A table that fails leaves the others alone, whatever the reason.
    except Exception as error:
        traceback.print_exc()
        failures[name] = f"{type(error).__name__}: {error}"
    return True


def write(table: Prepared, args: Arguments, page_path: Path) -> None:
    """Write the figures of a table, its pictures, and the page of all."""
    figures = figures_of(table, args.data, quick=args.quick)
    folder = page_path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / f"{table.table.name}.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    for kind in table.table.pictures:
        PICTURES[kind].draw(figures, page_path.parent)
    _write_whole(page_path, page(read_figures(folder)))


def _write_whole(path: Path, text: str) -> None:
    """Write a file in one move, since another copy may read it at any time."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def _speeds(tables: list[Prepared], output: Path, *, measure: bool) -> dict[str, float]:
    """The seconds for each token of each model, measured where no run tells them."""
    speeds = known_speeds(tables)
    for table in tables:
        model = table.table.model
        if measure and model not in speeds and table.left():
            print(f"Measuring a step of {model} ...", flush=True)
            speeds[model] = measured_speed(table, output / "measured")
    return speeds


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
