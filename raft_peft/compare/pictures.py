"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raft_peft import plots
from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.differences import COMPARED, AgainstBaseline
from raft_peft.compare.lines import Line, distribution_of
from raft_peft.compare.results import RunResult
from raft_peft.compare.table import TITLES


def draw_pictures(
    folder: Path,
    chosen: Mapping[str, Sequence[RunResult]],
    lines_of_sizes: Mapping[int, Sequence[Line]],
    compared: Sequence[AgainstBaseline],
) -> None:
    """Draw all pictures for which there are runs.

    Args:
        folder: of the pictures.
        chosen: the runs of each method on the most training rows, by its label.
        lines_of_sizes: the lines of the table for each number of training rows, ascending.
        compared: on the most training rows.
    """
    folder.mkdir(exist_ok=True)
    first = {label: runs[0] for label, runs in chosen.items()}
    target = next(iter(first.values())).predictions["label"]
    plots.plot_predictions(
        folder / "prediction_and_truth.png",
        target,
        {label: run.predictions["prediction"] for label, run in first.items()},
    )
    _draw_training(folder, chosen)
    _draw_differences(folder / "differences.png", compared)
    if len(lines_of_sizes) > 1:
        _draw_learning_curve(folder / "learning_curve.png", lines_of_sizes)
    for label, run in first.items():
        if run.label_shares.size:
            _draw_uncertainty(folder / f"uncertainty_{ComparedMethod.parse(label).slug}.png", label, run)
    if "rail" in first:
        _draw_change(folder, first, first["rail"])


def _draw_training(folder: Path, chosen: Mapping[str, Sequence[RunResult]]) -> None:
    """Validation RMSE against the step, and where it is known, against the cost."""
    trained = {label: runs for label, runs in chosen.items() if len(runs[0].curve["step"]) > 1}
    if not trained:
        return
    plots.plot_curves(
        folder / "validation_rmse.png",
        {label: [(run.curve["step"], run.curve["rmse"]) for run in runs] for label, runs in trained.items()},
    )
    untrained = {label: runs[0].metrics["rmse"] for label, runs in chosen.items() if runs[0].train_seconds is None}
    for name, x_label in (("seconds", "training, seconds"), ("tokens", "training, tokens")):
        known = {
            label: runs
            for label, runs in trained.items()
            if all(np.isfinite(_of_curve(run, name)).all() for run in runs)
        }
        if known:
            plots.plot_cost(
                folder / f"rmse_and_{name}.png",
                {label: [(_of_curve(run, name), run.curve["rmse"]) for run in runs] for label, runs in known.items()},
                {
                    label: ([run.metrics[f"train_{name}"] for run in runs], [run.metrics["rmse"] for run in runs])
                    for label, runs in known.items()
                },
                untrained=untrained,
                x_label=x_label,
            )


def _of_curve(run: RunResult, name: str) -> np.ndarray:
    """A column of the validation curve; NaN for a run from before it was kept."""
    return run.curve.get(name, np.full(len(run.curve["step"]), np.nan))


def _draw_differences(path: Path, compared: Sequence[AgainstBaseline]) -> None:
    found = {
        TITLES[name]: {
            one.method: (difference.difference, difference.low, difference.high)
            for one in compared
            if (difference := one.metrics.get(name)) is not None
        }
        for name in COMPARED
    }
    if any(found.values()):
        more_is_better = {TITLES[name]: more for name, more in COMPARED.items()}
        plots.plot_differences(path, found, more_is_better=more_is_better, baseline=compared[0].baseline)


def _draw_learning_curve(path: Path, lines_of_sizes: Mapping[int, Sequence[Line]]) -> None:
    points: dict[str, dict[int, np.ndarray]] = {}
    for size, lines in lines_of_sizes.items():
        for line in lines:
            points.setdefault(line.label, {})[size] = line.values["rmse"]
    curves = {}
    for label, of_sizes in points.items():
        runs = min(map(len, of_sizes.values()))
        curves[label] = [(list(of_sizes), [errors[run] for errors in of_sizes.values()]) for run in range(runs)]
    plots.plot_curves(path, curves, x_label="training rows", y_label="test RMSE", log_x=True)


def _draw_change(folder: Path, first: Mapping[str, RunResult], before: RunResult) -> None:
    """What training does to the distributions: a few of them, and their entropies."""
    target = before.predictions["label"]
    same = {
        label: run
        for label, run in first.items()
        if run.train_seconds is not None and np.array_equal(run.values, before.values)
    }
    for label, run in same.items():
        slug = ComparedMethod.parse(label).slug
        plots.plot_distributions(folder / f"distributions_{slug}.png", before.values, before.probs, run.probs, target)
    if same:
        entropy = distribution_of(before).entropy.numpy()
        plots.plot_entropy_change(
            folder / "entropy_change.png",
            entropy,
            {label: distribution_of(run).entropy.numpy() - entropy for label, run in same.items()},
        )


def _draw_uncertainty(path: Path, label: str, run: RunResult) -> None:
    distribution = distribution_of(run)
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
