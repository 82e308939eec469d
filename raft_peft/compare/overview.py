"""The tables of a comparison on several tasks in one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft_peft.compare.table import markdown, with_std
from raft_peft.compare.table_files import CSV, JSON, MARKDOWN, write_csv, write_json


def write_overview(folder: Path, texts: Mapping[str, str], failures: Mapping[str, str]) -> str:
    """Write the tables of all tasks, and return them as Markdown: RMSE by method and task, then those of each task.

    `table.md` holds what is returned, `table.csv` the lines of all tasks' `table.csv` with the column `task` before
    them, and `table.json` under `tasks` the `table.json` of each task, beside `failures`.

    Args:
        folder: of the comparison, with a folder for each task.
        texts: the tables of each task that gave a result.
        failures: why each of the others did not.

    Raises:
        ValueError: no task gave a result.
    """
    if not texts:
        raise ValueError("No task gave a result:\n" + "\n".join(f"  {task}: {why}" for task, why in failures.items()))
    reports = {task: json.loads((folder / task / JSON).read_text(encoding="utf-8")) for task in texts}
    lines = [{"task": task, **line} for task, report in reports.items() for line in report["summary"]]
    write_csv(folder / CSV, lines)
    write_json(folder / JSON, {"tasks": reports, "failures": failures})
    failed = "".join(f"- {task} failed: {why}\n" for task, why in failures.items())
    sections = [
        f"## RMSE on all tasks\n\n{_rmse_by_task(reports)}\n"
        "Better or worse than the baseline of the task; nothing where they are not told apart.\n",
        *([failed] if failed else []),
        *(f"## {task}\n\n{text}" for task, text in texts.items()),
    ]
    text = "\n".join(sections)
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    return text


def _rmse_by_task(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The RMSE of each line on each task, at the most training rows, with its verdict against the task's baseline."""
    found: dict[str, dict[str, str]] = {}
    for task, report in reports.items():
        largest = max(line["train_rows"] for line in report["summary"])
        for line in report["summary"]:
            if line["train_rows"] != largest:
                continue
            found_here = [line["rmse_mean"], line["rmse_std"]]
            mean, std = (math.nan if value is None else value for value in found_here)
            verdict = {"better": " (better)", "worse": " (worse)"}.get(line["rmse_verdict"], "")
            if line["method"] == report["baseline"]:
                verdict = " (baseline)"
            found.setdefault(line["method"], {})[task] = f"{with_std(mean, std)}{verdict}"
    lines = [[name, *(cells.get(task, "-") for task in reports)] for name, cells in found.items()]
    return markdown([["method", *reports], *lines])
