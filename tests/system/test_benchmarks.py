"""What the benchmarks write: reports that name models and settings, and nothing of the machine's folders."""

import argparse
import json
import re
from pathlib import Path

import pytest
import report
from common.side_by_side import write

ROOT = Path(__file__).resolve().parents[2]
FIGURES = sorted([*(ROOT / "docs").rglob("*.json"), *(ROOT / "benchmarks" / "figures").rglob("*.json")])
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'`(=:,])(?:/\w|~/|[A-Za-z]:\\)""")


@pytest.mark.parametrize("text", ["/tmp/x.json", "--output /tmp/x", "at ~/models", r"C:\models", "path=/home/me"])
def test_absolute_paths_are_found(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["google/gemma-3-270m", "| time / bare backbone |", "docs/images", "SFT: 1/2"])
def test_names_and_ratios_are_no_absolute_paths(text):
    assert not ABSOLUTE_PATH.search(text)


def texts(value):
    """All texts of a JSON value, its keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_figures_hold_no_absolute_path(path):
    found = [text for text in texts(json.loads(path.read_text(encoding="utf-8"))) if ABSOLUTE_PATH.search(text)]
    assert found == []


def test_figures_are_written_with_the_arguments_but_not_with_their_own_path(tmp_path):
    path = tmp_path / "figures.json"
    write(argparse.Namespace(model="m", turns=3, output=str(path)), {"figures": [1.5]})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written.pop("versions")["raft-peft"]
    assert written == {"settings": {"model": "m", "turns": 3}, "figures": [1.5]}


SCRIPT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--output")
args = parser.parse_args()
print(f"{args.model} on a device\\n\\n| time |\\n|---|\\n| 1.00 |")
pathlib.Path(args.output).write_text(json.dumps({"settings": {"model": args.model}}))
"""


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_run_names_the_model_and_not_its_folder(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BENCHMARKS", tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    benchmark = report.Benchmark("A title", "script.py", ("--model", "owner/name"), "")
    assert report.run(benchmark, f"{tmp_path}/models{ending}") == {
        "settings": {"model": "owner/name"},
        "printed": "owner/name on a device\n\n| time |\n|---|\n| 1.00 |\n",
    }


def test_a_run_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BENCHMARKS", tmp_path)
    (tmp_path / "script.py").write_text("raise SystemExit('no such device')")
    with pytest.raises(RuntimeError, match=r"script\.py.* failed with 1:\nno such device"):
        report.run(report.Benchmark("A title", "script.py", ("--model", "owner/name"), ""), None)


def test_the_page_is_written_from_the_figures():
    figures = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == report.report(figures)


def test_every_script_is_in_the_readme():
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    scripts |= {f"{path.parent.name}/" for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert set(re.findall(r"^\| `(\w+(?:\.py|/))`", readme, flags=re.MULTILINE)) == scripts
