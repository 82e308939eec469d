"""The notebooks: they agree with their sources, were executed as a whole, and still run."""

import re
import sys
import tempfile
import warnings
from pathlib import Path

import datasets
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import transformers
from jupytext.compare import compare_notebooks

from examples.notebooks.execute import FOLDER, NAMES, executed, read_source

ROOT = FOLDER.parents[1]
LARGEST = 500_000  # bytes
PICTURES = {
    "01_tour": 5,
    "02_choosing_a_method": 4,
    "03_llm_judge": 3,
    "04_qlora_on_one_gpu": 1,
    "05_typed_questions": 2,
    "06_scores_with_reasons": 1,
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def is_noise(output):
    return output.output_type == "error" or output.get("name") == "stderr"


def test_there_are_six():
    assert list(PICTURES) == NAMES


def test_agrees_with_its_source(name, notebook):
    compare_notebooks(notebook, read_source(name), "py:percent")
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in read_source(name).cells]


def test_was_executed_as_a_whole(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [output for output in outputs(notebook) if is_noise(output)]


def test_has_its_pictures_and_is_small(name, notebook):
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == PICTURES[name]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


def test_names_no_folder_of_the_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not [path for path in (str(ROOT), str(Path.home()), tempfile.gettempdir()) if f"{path}/" in text]


def test_its_links_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert links
    assert not [link for link in links if "://" not in link and not (FOLDER / link).exists()]


def test_the_page_of_the_folder_lists_all():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\)", page, flags=re.MULTILINE) == NAMES


@pytest.fixture
def undisturbed(monkeypatch):
    """What notebooks set for their own process is as before for the tests behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    verbosity, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    bars_were_off = datasets.are_progress_bars_disabled()
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    with warnings.catch_warnings(), matplotlib.rc_context():
        yield
    plt.close("all")
    matplotlib.use(backend)
    transformers.logging.set_verbosity(verbosity)
    if bar:
        transformers.logging.enable_progress_bar()
    if not bars_were_off:
        datasets.enable_progress_bars()


def run_cells(name, monkeypatch, **parameters):
    """Run a notebook's code in this process, some of its parameters set anew, and give the names it leaves."""
    monkeypatch.chdir(FOLDER)
    names = {"__name__": "__main__"}
    for cell in code_cells(read_source(name)):
        exec(compile(cell.source, f"{name}.py", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            assert set(parameters) <= set(names)
            names |= parameters
    return names


def test_the_tour_runs(smollm2, undisturbed, monkeypatch, capsys):
    before = {path for path in FOLDER.iterdir() if path.name != "__pycache__"}
    names = run_cells("01_tour", monkeypatch, MODEL=str(smollm2), TRAIN_ROWS=48, TEST_ROWS=12, EPOCHS=1)
    assert names["after_numbers"].shape == (12,)
    assert np.isfinite(names["after_numbers"]).all()
    assert not np.allclose(names["after_numbers"], names["before_numbers"], atol=0.1)
    assert np.abs(names["after_numbers"] - names["of_trainer"]).max() < 0.1
    assert len(names["losses"]) == 3
    assert "probability on the grid" in capsys.readouterr().out
    assert not names["output"].exists()
    assert {path for path in FOLDER.iterdir() if path.name != "__pycache__"} == before


@pytest.mark.slow
def test_can_be_executed_anew(name):
    notebook = executed(name)
    assert not [output for output in outputs(notebook) if is_noise(output)]
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == PICTURES[name]
