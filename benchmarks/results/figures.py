"""The figures of a table as JSON: what its comparison found, what its rows say by themselves, and where it was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.side_by_side import device_name
from datasets import load_from_disk

from raft_peft.compare.comparison import DATA
from raft_peft.compare.leaks import find_leaks
from raft_peft.compare.report import write_report
from raft_peft.compare.results import RunResult, chosen_runs
from raft_peft.compare.rows import labels_of
from raft_peft.compare.table_files import JSON
from raft_peft.data.row_sources import read_rows
from raft_peft.methods.saved_folder import installed_versions
from results.prepared import Prepared, for_this_device
from results.reference_lines import rater_line, scored_line

_ENVIRONMENTS = "environments.json"
# Stand for the user's folders, of which the figures name none.
DATA_FOLDER, OUTPUT_FOLDER = "DATA", "OUTPUT"
# What is taken of the comparison's own report. Its leaks quote rows, which are not ours to copy.
_TAKEN = ("rows", "baseline", "level", "failures", "summary", "runs", "max_steps", "eval_steps")


def note_environment(folder: Path, device: str) -> None:
    """Note in a comparison's folder on what it is run, beside what it was run on before."""
    path = folder / _ENVIRONMENTS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    here = {"device": device_name(device), "versions": installed_versions()}
    if here not in found:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*found, here], indent=1) + "\n", encoding="utf-8")


def report_unfinished(prepared: Prepared) -> None:
    """Write the report of a comparison from the runs that there are."""
    results = {method.label: list(prepared.done_of(method)) for method in prepared.settings.compared_methods()}
    data = load_from_disk(str(prepared.folder / DATA))
    _, leaks = find_leaks(data, drop=False)
    labels = labels_of(data["train"])
    write_report(prepared.folder, prepared.settings, results, {}, train_labels=labels, leaks=leaks)


def figures_of(prepared: Prepared, data: str, *, quick: bool) -> dict[str, Any]:
    """The figures of a table whose comparison has written its report.

    Args:
        prepared: the table.
        data: the user's folder.
        quick: whether everything was small.
    """
    table = prepared.table
    report = json.loads((prepared.folder / JSON).read_text(encoding="utf-8"))
    failures = {
        name: reason.replace(str(prepared.folder), OUTPUT_FOLDER).replace(data, DATA_FOLDER)
        for name, reason in report["failures"].items()
    }
    taken = {name: report[name] for name in _TAKEN}
    suite = prepared.settings.suite_asked_for()
    done = prepared.done()
    return {
        "name": table.name,
        "model": table.model,
        "options": {**for_this_device(), **table.options(DATA_FOLDER, train_rows=prepared.rows["train"], quick=quick)},
        "quick": quick,
        "environments": json.loads((prepared.folder / _ENVIRONMENTS).read_text(encoding="utf-8")),
        "runs_done": prepared.planned.total() - prepared.left().total(),
        "runs_planned": prepared.planned.total(),
        "hours": sum(run.seconds for run in done) / 3600,
        **taken,
        "failures": failures,
        "leaks": [{name: value for name, value in leak.items() if name != "prompt"} for leak in report["leaks"]],
        "curves": _curves(prepared),
        "references": _references(prepared),
        "paper": {} if suite is None or table.paper is None else dict(suite.figures.get(table.paper, {})),
    }


def _curves(prepared: Prepared) -> list[dict[str, Any]]:
    """The validation RMSE at each step, of the chosen runs."""
    found = []
    sizes = prepared.sizes
    for method in prepared.settings.compared_methods():
        runs = list(prepared.done_of(method))
        for size in sizes if method.trains else []:
            chosen: Sequence[RunResult] = chosen_runs(
                runs, prepared.settings.seeds, train_rows=size, largest=sizes[-1]
            )
            found += [
                {
                    "method": method.label,
                    "train_rows": size or prepared.rows["train"],
                    "seed": run.run.seed,
                    "step": run.curve["step"].tolist(),
                    # What is no number is no JSON.
                    "rmse": [value if np.isfinite(value) else None for value in run.curve["rmse"].tolist()],
                }
                for run in chosen
            ]
    return found


def _references(prepared: Prepared) -> dict[str, dict[str, float]]:
    """The lines that are computed from the rows themselves."""
    settings = prepared.settings
    found: dict[str, dict[str, float]] = {}
    if not prepared.table.references:
        return found
    train, test = (list(read_rows(str(path))) for path in (settings.train_file, settings.test_file))
    test = test[: prepared.rows["test"]]
    labels = [[float(np.mean(row[settings.label_column])) for row in rows] for rows in (train, test)]
    if "vader" in prepared.table.references:
        texts = [[row["text"] for row in rows] for rows in (train, test)]
        found["VADER rules, by a line fitted to the training rows"] = scored_line(
            texts[0], labels[0], texts[1], labels[1]
        )
    if "rater" in prepared.table.references:
        line = rater_line([row[settings.label_column] for row in test])
        found["one rater against the mean of the others"] = line
    return found


def read_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of all tables in a folder, by their names."""
    files: Mapping[str, Path] = {path.stem: path for path in sorted(folder.glob("*.json"))}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
