"""The report of a comparison: a table in the form of the paper's Table 3, pictures, and each method's predictions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from raft_peft import plots
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.results import RunResult, chosen_runs, steps_to_convergence
from raft_peft.compare.run import COMPARISON, PREDICTIONS
from raft_peft.compare.settings import CompareSettings
from raft_peft.decisions import decide
from raft_peft.distribution import GridDistribution
from raft_peft.methods import METHODS
from raft_peft.metrics import regression_metrics

_METRICS = ("rmse", "pearson", "spearman")
_HEADER = (
    "method",
    "RMSE",
    "Pearson",
    "Spearman",
    "learning rate",
    "steps to converge",
    "training, min",
    "peak memory, GiB",
    "runs",
)


def write_report(
    folder: Path, settings: CompareSettings, results: Mapping[str, Sequence[RunResult]], failures: Mapping[str, str]
) -> str:
    """Write `table.md`, `table.csv`, `predictions/` and `pictures/`, and return the table as Markdown.

    Args:
        folder: of the comparison.
        settings: of the comparison.
        results: the finished runs of each method, by its label.
        failures: the reason of each run that failed.

    Raises:
        ValueError: no run gave a result.
    """
    chosen = {label: chosen_runs(runs, settings.seeds) for label, runs in results.items()}
    chosen = {label: runs for label, runs in chosen.items() if runs}
    diverged = [f"{label}, {run.folder.name}" for label, runs in results.items() for run in runs if run.diverged]
    failures = {**failures, **dict.fromkeys(diverged, "it diverged, no validation RMSE is a number")}
    if not chosen:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise ValueError(f"No run of the comparison gave a result:\n{reasons}")
    rows = [row for label, runs in chosen.items() for row in _rows(label, runs, settings)]
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "method",
                *(f"{metric}_{part}" for metric in _METRICS for part in ("mean", "std")),
                "learning_rate",
                "steps_to_convergence",
                "train_seconds",
                "peak_memory_bytes",
                "runs",
            ]
        )
        writer.writerows(row.cells() for row in rows)
    text = _markdown(folder, rows, settings, failures)
    (folder / "table.md").write_text(text, encoding="utf-8")
    _write_predictions(folder / "predictions", chosen)
    _draw(folder / "pictures", chosen)
    return text


class _Row:
    """A line of the table: the metrics of one way to predict, over the runs of a method."""

    def __init__(self, label: str, metrics: Sequence[Mapping[str, float]], runs: Sequence[RunResult]):
        self.label = label
        self.values = {name: np.array([run[name] for run in metrics]) for name in _METRICS}
        self.runs = runs

    def mean(self, name: str) -> float:
        return float(self.values[name].mean())

    def std(self, name: str) -> float:
        """The sample standard deviation over the seeds; NaN for one."""
        return float(self.values[name].std(ddof=1)) if len(self.values[name]) > 1 else float("nan")

    @property
    def train_seconds(self) -> float | None:
        seconds = [run.train_seconds for run in self.runs if run.train_seconds is not None]
        return float(np.mean(seconds)) if seconds else None

    @property
    def steps(self) -> float | None:
        return float(np.mean([steps_to_convergence(run) for run in self.runs])) if self.train_seconds else None

    @property
    def memory(self) -> int:
        return max(run.metrics["peak_memory_bytes"] for run in self.runs)

    def cells(self) -> list[object]:
        numbers = [number for name in _METRICS for number in (self.mean(name), self.std(name))]
        rate = self.runs[0].run.learning_rate
        return [self.label, *numbers, rate, self.steps, self.train_seconds, self.memory, len(self.runs)]


def _rows(label: str, runs: Sequence[RunResult], settings: CompareSettings) -> list[_Row]:
    method = ComparedMethod.parse(label)
    if not method.is_encoder and METHODS[method.name].reads_text:
        rail = [{name: run.metrics[f"rail_{name}"] for name in _METRICS} for run in runs]
        return [_Row(f"{label}, decoded", [run.metrics for run in runs], runs), _Row(f"{label}, RAIL", rail, runs)]
    rows = [_Row(label, [run.metrics for run in runs], runs)]
    own = method.options.get("decision", "mean")
    for rule in settings.decision_rules():
        if rule != own and all(run.values.size for run in runs):
            rows.append(_Row(f"{label}, {rule}", [_metrics_under(rule, run) for run in runs], runs))
    return rows


def _metrics_under(rule: str, run: RunResult) -> dict[str, float]:
    renormalize = ComparedMethod.parse(run.run.method).options.get("renormalize", False)
    numbers = decide(_distribution(run), rule, renormalize=renormalize)
    return regression_metrics(numbers.numpy(), run.predictions["label"])


def _distribution(run: RunResult) -> GridDistribution:
    return GridDistribution(torch.tensor(run.probs).float().log(), torch.tensor(run.values).float())


def _markdown(folder: Path, rows: Sequence[_Row], settings: CompareSettings, failures: Mapping[str, str]) -> str:
    best = min(rows, key=lambda row: np.nan_to_num(row.mean("rmse"), nan=np.inf))
    table: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        cells = [_with_std(row.mean(name), row.std(name)) for name in _METRICS]
        if row is best:
            cells = [f"**{cell}**" for cell in cells]
        rate = row.runs[0].run.learning_rate
        table.append(
            (
                row.label,
                *cells,
                "-" if rate is None else f"{rate:g}",
                "-" if row.steps is None else f"{row.steps:.0f}",
                "-" if row.train_seconds is None else f"{row.train_seconds / 60:.1f}",
                f"{row.memory / 2**30:.2f}",
                str(len(row.runs)),
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    run = rows[0].runs[0]
    counts = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))["rows"]
    data = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    about = (
        f"{settings.model}, {settings.task or 'a dataset of your own'} ({data}), recipe {settings.recipe}, "
        f"{settings.max_steps} steps, validated every {settings.eval_steps}, on {run.metrics['device']}. Mean ± "
        "standard deviation over the seeds; each run is tested at its best step by validation RMSE."
    )
    failed = [f"- {name} failed: {reason}" for name, reason in failures.items()]
    return "\n".join([*lines, "", about, *([""] if failed else []), *failed]) + "\n"


def _with_std(mean: float, std: float) -> str:
    return f"{mean:.3f}" if np.isnan(std) else f"{mean:.3f} ± {std:.3f}"


def _write_predictions(folder: Path, chosen: Mapping[str, Sequence[RunResult]]) -> None:
    for label, runs in chosen.items():
        for run in runs:
            path = folder / ComparedMethod.parse(label).slug / f"seed{run.run.seed}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / PREDICTIONS, path)


def _draw(folder: Path, chosen: Mapping[str, Sequence[RunResult]]) -> None:
    """The pictures for which there are runs."""
    folder.mkdir(exist_ok=True)
    first = {label: runs[0] for label, runs in chosen.items()}
    target = next(iter(first.values())).predictions["label"]
    plots.plot_predictions(
        folder / "prediction_and_truth.png",
        target,
        {label: run.predictions["prediction"] for label, run in first.items()},
    )
    curves = {
        label: [(run.curve["step"], run.curve["rmse"]) for run in runs]
        for label, runs in chosen.items()
        if len(runs[0].curve["step"]) > 1
    }
    if curves:
        plots.plot_curves(folder / "validation_rmse.png", curves)
    before = first.get("rail")
    if before is None:
        return
    same = {
        label: run
        for label, run in first.items()
        if run.train_seconds is not None and np.array_equal(run.values, before.values)
    }
    for label, run in same.items():
        slug = ComparedMethod.parse(label).slug
        plots.plot_distributions(folder / f"distributions_{slug}.png", before.values, before.probs, run.probs, target)
    if same:
        entropy = _distribution(before).entropy.numpy()
        plots.plot_entropy_change(
            folder / "entropy_change.png",
            entropy,
            {label: _distribution(run).entropy.numpy() - entropy for label, run in same.items()},
        )
