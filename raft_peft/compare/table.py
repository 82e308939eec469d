"""The table of a comparison, in the form of the paper's Table 3, as Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raft_peft.compare.results import RunResult, ended_early, steps_to_convergence

OF_PREDICTIONS = ("rmse", "mae", "pearson", "spearman")
# A method without a distribution has none of the last.
METRICS = (*OF_PREDICTIONS, "crps", "calibration_error")
_HEADER = (
    "method",
    "RMSE",
    "MAE",
    "Pearson",
    "Spearman",
    "CRPS",
    "calibration error",
    "learning rate",
    "steps to converge",
    "training, min",
    "peak memory, GiB",
    "runs",
)
_PAPER = "RMSE in the paper"


class Row:
    """A line of the table: the metrics of one way to predict, over the runs of a method.

    Attributes:
        label: of the line.
        values: each metric, of shape (runs,).
        runs: of the method; none where nothing was run.
    """

    def __init__(self, label: str, metrics: Sequence[Mapping[str, float]], runs: Sequence[RunResult]):
        self.label = label
        self.values = {name: np.array([run.get(name, np.nan) for run in metrics]) for name in METRICS}
        self.runs = runs

    def mean(self, name: str) -> float:
        return float(self.values[name].mean())

    def std(self, name: str) -> float:
        """The sample standard deviation over the seeds; NaN for one."""
        return float(self.values[name].std(ddof=1)) if len(self.values[name]) > 1 else float("nan")

    @property
    def learning_rate(self) -> float | None:
        return self.runs[0].run.learning_rate if self.runs else None

    @property
    def train_seconds(self) -> float | None:
        seconds = [run.train_seconds for run in self.runs if run.train_seconds is not None]
        return float(np.mean(seconds)) if seconds else None

    @property
    def steps(self) -> float | None:
        return float(np.mean([steps_to_convergence(run) for run in self.runs])) if self.train_seconds else None

    @property
    def ended_early(self) -> bool:
        """Whether a run ended before it converged."""
        return any(ended_early(run) for run in self.runs)

    @property
    def memory(self) -> int | None:
        return max((run.metrics["peak_memory_bytes"] for run in self.runs), default=None)

    def cells(self) -> list[object]:
        """As they stand in the CSV file."""
        numbers = [number for name in METRICS for number in (self.mean(name), self.std(name))]
        ended = None if self.steps is None else self.ended_early
        return [
            self.label,
            *numbers,
            self.learning_rate,
            self.steps,
            ended,
            self.train_seconds,
            self.memory,
            len(self.runs),
        ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table with all digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "method",
                *(f"{metric}_{part}" for metric in METRICS for part in ("mean", "std")),
                "learning_rate",
                "steps_to_convergence",
                "ended_before_convergence",
                "train_seconds",
                "peak_memory_bytes",
                "runs",
            ]
        )
        writer.writerows(row.cells() for row in rows)


def as_markdown(rows: Sequence[Row], figures: Mapping[str, str]) -> str:
    """The table as Markdown, the row of the least RMSE in bold.

    Args:
        rows: its lines.
        figures: what the paper has for them, by their labels; empty for a table without this column.
    """
    best = min(rows, key=lambda row: np.nan_to_num(row.mean("rmse"), nan=np.inf))
    table = [[*_HEADER, *([_PAPER] if figures else [])]]
    for row in rows:
        cells = [_with_std(row.mean(name), row.std(name)) for name in METRICS]
        if row is best:
            cells = [cell if cell == "-" else f"**{cell}**" for cell in cells]
        table.append(
            [
                row.label,
                *cells,
                "-" if row.learning_rate is None else f"{row.learning_rate:g}",
                "-" if row.steps is None else f"{'> ' if row.ended_early else ''}{row.steps:.0f}",
                "-" if row.train_seconds is None else f"{row.train_seconds / 60:.1f}",
                "-" if row.memory is None else f"{row.memory / 2**30:.2f}",
                str(len(row.runs)) if row.runs else "-",
                *([figures.get(row.label, "-")] if figures else []),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _with_std(mean: float, std: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(std) else f"{mean:.3f} ± {std:.3f}"
