"""The figures of a comparison with all digits: `table.csv` and `table.json`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raft_peft.compare.differences import COMPARED, AgainstBaseline
from raft_peft.compare.lines import METRICS, Line

CSV, JSON, MARKDOWN = "table.csv", "table.json", "table.md"
_PARTS = ("difference", "low", "high", "verdict")


def summary(lines: Sequence[Line], compared: Sequence[AgainstBaseline]) -> list[dict[str, Any]]:
    """Each line with its metrics, costs, and differences from the baseline, flat: a line of `table.csv`."""
    against = {(one.method, one.train_rows): one for one in compared}
    found = []
    for line in lines:
        row: dict[str, Any] = {"method": line.label, "train_rows": line.train_rows}
        for name in METRICS:
            row |= {f"{name}_mean": line.mean(name), f"{name}_std": line.std(name)}
        row |= {
            "learning_rate": line.learning_rate,
            "steps_to_convergence": line.steps,
            "ended_before_convergence": None if line.steps is None else line.ended_early,
            "train_tokens": line.train_tokens,
            "train_seconds": line.train_seconds,
            "peak_memory_bytes": line.memory,
            "runs": len(line.runs),
        }
        one = against.get((line.label, line.train_rows))
        row["baseline"] = None if one is None else one.baseline
        for name in COMPARED:
            parts = {} if one is None or name not in one.metrics else asdict(one.metrics[name])
            row |= {f"{name}_{part}": parts.get(part) for part in _PARTS}
        found.append(row)
    return found


def each_run(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each run of each line with its metrics and costs."""
    return [
        {
            "method": line.label,
            "train_rows": line.train_rows,
            "seed": result.run.seed,
            "learning_rate": result.run.learning_rate,
            **{name: float(line.values[name][place]) for name in METRICS},
            **{name: result.metrics.get(name) for name in _OF_A_RUN},
        }
        for line in lines
        for place, result in enumerate(line.runs)
    ]


_OF_A_RUN = (
    "validation_rmse",
    "train_tokens",
    "train_seconds",
    "test_seconds",
    "seconds",
    "peak_memory_bytes",
    "parameters_trained",
    "device",
)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, null for what is no number."""
    path.write_text(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {name: _finite(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
