"""The report of a comparison: a table in the form of the paper's Table 3, pictures, and each method's predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from raft_peft import plots
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.results import RunResult, chosen_runs
from raft_peft.compare.run import COMPARISON, PREDICTIONS
from raft_peft.compare.settings import CompareSettings
from raft_peft.compare.table import OF_PREDICTIONS, Row, as_markdown, write_csv
from raft_peft.decisions import decide
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.metrics import mae, regression_metrics, rmse

MEAN_OF_LABELS = "mean of the training labels"


def write_report(
    folder: Path,
    settings: CompareSettings,
    results: Mapping[str, Sequence[RunResult]],
    failures: Mapping[str, str],
    *,
    train_labels: Sequence[float],
) -> str:
    """Write `table.md`, `table.csv`, `predictions/` and `pictures/`, and return the table as Markdown.

    Args:
        folder: of the comparison.
        settings: of the comparison.
        results: the finished runs of each method, by its label.
        failures: the reason of each run that failed.
        train_labels: whose mean is the prediction that all others must beat.

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
    if any(label.startswith("rail:num_samples=") for label in chosen):
        for row in rows:
            # Beside the mean of samples, which estimates it.
            row.label += ", exact" if row.label == "rail" else ""
    target = next(iter(chosen.values()))[0].predictions["label"]
    rows.append(_mean_row(train_labels, target))
    write_csv(folder / "table.csv", rows)
    text = f"{as_markdown(rows, _figures(settings))}\n{_about(folder, settings, rows, failures)}\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    _write_predictions(folder / "predictions", chosen)
    _draw(folder / "pictures", chosen)
    return text


def _mean_row(train_labels: Sequence[float], target: np.ndarray) -> Row:
    """What the same prediction for every row gives: the mean of the training labels."""
    constant = np.full(len(target), np.mean(train_labels))
    # A constant correlates with nothing.
    return Row(MEAN_OF_LABELS, [{"rmse": rmse(constant, target), "mae": mae(constant, target)}], [])


def _figures(settings: CompareSettings) -> Mapping[str, str]:
    """What the paper has for the lines of this table; empty where it is not on a dataset of the paper's table."""
    suite = settings.suite_asked_for()
    return {} if suite is None or settings.task is None else suite.figures.get(settings.task, {})


def _rows(label: str, runs: Sequence[RunResult], settings: CompareSettings) -> list[Row]:
    method = ComparedMethod.parse(label)
    if method.reads_text:
        # The distribution is that behind RAIL, and not of the texts.
        decoded = [{name: value for name, value in run.metrics.items() if name in OF_PREDICTIONS} for run in runs]
        rail = [run.metrics | {name: run.metrics[f"rail_{name}"] for name in OF_PREDICTIONS} for run in runs]
        return [Row(f"{label}, decoded", decoded, runs), Row(f"{label}, RAIL", rail, runs)]
    rows = [Row(label, [run.metrics for run in runs], runs)]
    own = method.options.get("decision", "mean")
    for rule in settings.decision_rules():
        # Among one number there is nothing to decide.
        if rule != own and all(run.values.size > 1 for run in runs):
            rows.append(Row(f"{label}, {rule}", [_metrics_under(rule, run) for run in runs], runs))
    return rows


def _metrics_under(rule: str, run: RunResult) -> dict[str, float]:
    renormalize = ComparedMethod.parse(run.run.method).renormalizes(NumberGrid(dict(run.run.grid)))
    numbers = decide(_distribution(run), rule, renormalize=renormalize)
    return regression_metrics(numbers.numpy(), run.predictions["label"])


def _distribution(run: RunResult) -> GridDistribution:
    return GridDistribution(torch.tensor(run.probs).float().log(), torch.tensor(run.values).float())


def _about(folder: Path, settings: CompareSettings, rows: Sequence[Row], failures: Mapping[str, str]) -> str:
    """What stands under the table."""
    counts = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))["rows"]
    data = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    source = settings.task or settings.train_file or "a dataset of your own"
    tested = "best step by validation RMSE" if settings.keep == "best" else "last step"
    lines = [
        f"{settings.model}, {source} ({data}), recipe {settings.recipe}, {settings.max_steps:,} steps, validated "
        f"every {settings.eval_steps:,}, on {rows[0].runs[0].metrics['device']}. Mean ± standard deviation over the "
        f"seeds; each run is tested at its {tested}."
    ]
    if any(row.ended_early for row in rows):
        lines += [
            "",
            "`>`: a run of this method was at its best at its last step, and had not converged. More steps "
            "(`--max_steps`) may make it better.",
        ]
    if settings.quick:
        lines += ["", "Made with `--quick`: it shows that everything works, and nothing about the methods."]
    failed = [f"- {name} failed: {reason}" for name, reason in failures.items()]
    return "\n".join([*lines, *([""] if failed else []), *failed])


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
    for label, run in first.items():
        if run.label_shares.size:
            _draw_uncertainty(folder / f"uncertainty_{ComparedMethod.parse(label).slug}.png", label, run)
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


def _draw_uncertainty(path: Path, label: str, run: RunResult) -> None:
    distribution = _distribution(run)
    plots.plot_uncertainty(
        path,
        run.values,
        run.probs,
        run.label_shares,
        widths=2 * distribution.std.numpy(),
        errors=np.abs(run.predictions["prediction"] - run.predictions["label"]),
        title=label,
        width_label=plots.TWO_DEVIATIONS,
    )
