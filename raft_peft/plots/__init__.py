"""Pictures, from plain arrays. They need matplotlib: pip install raft-peft[plots]."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raft_peft.metrics import pearson, rmse

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_ACROSS = 4
_BINS = 30
_TICKS = 11
# Taken in turn with matplotlib's ten colours, so that no two of twenty lines are alike.
_LINE_STYLES = ["-", "--", "-.", ":"]


def plot_predictions(
    path: str | Path,
    target: npt.ArrayLike,
    predictions: Mapping[str, npt.ArrayLike],
    *,
    title: str = "",
    labels: tuple[str, str] = ("truth", "prediction"),
    x: npt.ArrayLike | None = None,
    x_label: str = "",
) -> None:
    """Draw predictions against the truth, one panel for each set of predictions.

    A prediction that lies outside the range of the targets by more than a quarter of it is drawn as a cross at the
    edge, so that a few wild ones do not flatten all panels.

    Args:
        path: the image file to write.
        target: the true numbers, of shape (rows,).
        predictions: a name and the predicted numbers, of shape (rows,), for each panel.
        title: above the picture.
        labels: what the target and the predictions are called.
        x: where the target is a function of one number: that number, of shape (rows,). Then target and predictions
            are drawn over it; by default predictions are drawn over the target.
        x_label: what x is.

    Raises:
        ValueError: there are no predictions, or arrays do not have the shape of the target.
    """
    target = _vector("target", target)
    drawn = {name: _array(f"predictions[{name!r}]", values, target.shape) for name, values in predictions.items()}
    across = target if x is None else _array("x", x, target.shape)
    order = np.argsort(across)
    low, high = _range(target)
    margin = (high - low) / 4
    figure, axes = _panels(drawn, title=title, x_label=labels[0] if x is None else x_label, y_label=labels[1])
    legend: dict[str, Artist] = {}
    for axis, (name, values) in zip(axes, drawn.items(), strict=True):
        if x is None:
            axis.plot([low, high], [low, high], color="0.6", linewidth=1, label=labels[0])
        else:
            axis.plot(across[order], target[order], color="0.6", linewidth=1.5, label=labels[0])
        edge = np.clip(values, low - margin, high + margin)
        beyond = (edge != values) & ~np.isnan(values)
        near = ~beyond
        axis.scatter(across[near], values[near], s=9, color="C0", alpha=0.5, linewidths=0, label=labels[1])
        if beyond.any():
            axis.scatter(across[beyond], edge[beyond], s=20, color="C3", marker="x", linewidths=1, label="further off")
        legend |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        axis.set_title(f"{name}\nRMSE {rmse(values, target):.2f}, Pearson {pearson(values, target):.2f}", fontsize=11)
    axes[0].legend(handles=list(legend.values()), frameon=False, loc="upper left")
    _save(figure, path)


def plot_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]],
    *,
    x_label: str = "step",
    y_label: str = "validation RMSE",
    title: str = "",
) -> None:
    """Draw a quantity over the steps of training, one line a method (the paper's Figure 5).

    The line is the mean over the runs of a method, at the steps that all of them have; the band reaches from the
    least to the greatest. The axis is logarithmic where the values span more than a factor of ten.

    Args:
        path: the image file to write.
        curves: a name and the runs of each method: steps and values, each of shape (evaluations,).
        x_label, y_label: what steps and values are.
        title: above the picture.

    Raises:
        ValueError: there are no curves, a method has no runs, its runs have no step in common, or steps and values
            differ in shape.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    lines = {name: _common_steps(name, runs) for name, runs in curves.items()}
    figure, (axis,) = _panels([lines] if lines else [], size=(8.4, 4.8), title=title, x_label=x_label, y_label=y_label)
    for index, (name, (steps, values)) in enumerate(lines.items()):
        color, style = f"C{index % 10}", _LINE_STYLES[index % len(_LINE_STYLES)]
        axis.plot(
            steps, values.mean(0), color=color, linestyle=style, linewidth=1.6, marker="o", markersize=3, label=name
        )
        axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    low, high = _range(*(values for _, values in lines.values()))
    if 0 < 10 * low < high:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    figure.legend(frameon=False, loc="outside right upper", handlelength=3)
    _save(figure, path)


def plot_distributions(
    path: str | Path,
    values: npt.ArrayLike,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    rows: int = 4,
    title: str = "",
    labels: tuple[str, str] = ("before", "after"),
) -> None:
    """Draw two distributions over the grid, before and after training, for a few rows (the paper's Figure 7).

    The rows are spread over the range of the targets, from the least to the greatest. A grid of one number has the
    target as the probability at which the prediction is right.

    Args:
        path: the image file to write.
        values: the numbers of the grid, of shape (grid,).
        before: their probabilities before training, of shape (rows, grid).
        after: the same after training.
        targets: the true numbers, of shape (rows,).
        rows: how many rows to draw.
        title: above the picture.
        labels: what the two distributions are called, such as the names of two models.

    Raises:
        ValueError: there are no rows, or the shapes do not fit.
    """
    values, targets = _vector("values", values), _vector("targets", targets)
    shape = (len(targets), len(values))
    order = np.argsort(values)
    values = values[order]
    before, after = (_array(*pair, shape)[:, order] for pair in (("before", before), ("after", after)))
    shown = np.argsort(targets)[np.linspace(0, len(targets) - 1, min(rows, len(targets))).round().astype(int)]
    figure, axes = _panels(shown, size=(4.6, 3.6), title=title, x_label="grid", y_label="probability")
    places = np.arange(len(values))
    ticks = places[:: math.ceil(len(values) / _TICKS)]
    for axis, row in zip(axes, shown, strict=True):
        if len(values) == 1 and values[0] != 0:
            target = axis.axhline(targets[row] / values[0])
        else:
            target = axis.axvline(np.interp(targets[row], values, places, left=-0.5, right=len(values) - 0.5))
        target.set(color="C3", linestyle="--", linewidth=1.2, label="target")
        handles = [
            axis.bar(places - 0.2, before[row], 0.4, color="0.7", label=labels[0]),
            axis.bar(places + 0.2, after[row], 0.4, color="C0", label=labels[1]),
            target,
        ]
        axis.set_xticks(ticks, [f"{value:g}" for value in values[ticks]])
        mass = f"{before[row].sum():.2f} {labels[0]}, {after[row].sum():.2f} {labels[1]}"
        axis.set_title(f"target {targets[row]:.4g}\non the grid {mass}", fontsize=11)
    figure.legend(handles=handles, frameon=False, loc="outside right upper")
    _save(figure, path)


def plot_entropy_change(
    path: str | Path,
    before: npt.ArrayLike,
    changes: Mapping[str, npt.ArrayLike],
    *,
    title: str = "",
    labels: tuple[str, str] = ("before", "after"),
) -> None:
    """Draw how much surer of its answer training makes a model, a histogram a method (the paper's Figure 6).

    Args:
        path: the image file to write.
        before: entropies of the distributions before training, in nats, of shape (rows,).
        changes: a name and the entropies after training minus those before, of shape (rows,), for each method.
        title: above the picture.
        labels: what the entropies are called, those given and those that the changes lead to.

    Raises:
        ValueError: there are no changes, or arrays do not have the shape of `before`.
    """
    before = _vector("before", before)
    drawn = {name: _array(f"changes[{name!r}]", change, before.shape) for name, change in changes.items()}
    bins = np.histogram_bin_edges([0.0, *_range(*drawn.values())], _BINS).tolist()
    figure, axes = _panels(
        drawn,
        size=(4.6, 3.2),
        same_x=True,
        title=title,
        x_label=f"entropy {labels[1]} minus {labels[0]}, nats\n({labels[0]}: {before.mean():.2f} on average)",
        y_label="rows",
    )
    for axis, (name, change) in zip(axes, drawn.items(), strict=True):
        axis.hist(change[np.isfinite(change)], bins, color="C0", alpha=0.6)
        handles = [
            axis.axvline(0, color="0.3", linewidth=1, label="no change"),
            axis.axvline(change.mean(), color="C3", linestyle="--", linewidth=1.2, label="mean"),
        ]
        axis.set_title(f"{name}\nmean {change.mean():+.2f}", fontsize=11)
    figure.legend(handles=handles, frameon=False, loc="outside right upper")
    _save(figure, path)


def _panels(
    panels: Collection[object],
    *,
    size: tuple[float, float] = (4.6, 4.4),
    same_x: bool = False,
    title: str,
    x_label: str,
    y_label: str,
) -> tuple[Figure, list[Axes]]:
    """A page with a panel for each of these, at most four across, on one scale upwards.

    Args:
        panels: what the panels are for.
        size: width and height of a panel, in inches.
        same_x: whether the panels have one scale across too.
        title: above the picture.
        x_label: below the lowest panels.
        y_label: beside the first panels.

    Raises:
        ValueError: there are none.
    """
    if len(panels) == 0:
        raise ValueError("There is nothing to draw: pass at least one method, with at least one row.")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    down = math.ceil(len(panels) / _PANELS_ACROSS)
    across = math.ceil(len(panels) / down)
    figure = Figure(figsize=(size[0] * across, size[1] * down), layout=ConstrainedLayoutEngine(h_pad=0.08))
    grid = list(figure.subplots(down, across, sharex=same_x, sharey=True, squeeze=False).flat)
    axes, spare = grid[: len(panels)], grid[len(panels) :]
    for axis in spare:
        axis.remove()
    for index, axis in enumerate(axes):
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelbottom=True)
        if index + across >= len(axes):
            axis.set_xlabel(x_label)
        if index % across == 0:
            axis.set_ylabel(y_label)
    if title:
        figure.suptitle(title)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    figure.savefig(path, dpi=120)


def _vector(name: str, numbers: npt.ArrayLike) -> np.ndarray:
    return _array(name, numbers, (np.asarray(numbers).size,))  # np.size does not know tensors


def _array(name: str, numbers: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers as an array.

    Raises:
        ValueError: it has another shape.
    """
    array = np.asarray(numbers, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` has the shape {array.shape}. To fit the other arrays it needs {shape}.")
    return array


def _range(*arrays: np.ndarray) -> tuple[float, float]:
    """The least and the greatest of the finite numbers, apart by one where they are the same; 0 and 1 without any."""
    numbers = np.concatenate([np.empty(0), *(array.ravel() for array in arrays)])
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return 0.0, 1.0
    low, high = float(numbers.min()), float(numbers.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _common_steps(name: str, runs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all runs of a method have, of shape (steps,), and the values there, of shape (runs, steps)."""
    if len(runs) == 0:
        raise ValueError(f"`curves[{name!r}]` has no runs. Leave the method out.")
    values_at: list[dict[float, float]] = []
    for run, (steps, values) in enumerate(runs):
        steps = np.asarray(steps, dtype=np.float64)
        values = _array(f"curves[{name!r}][{run}] values", values, steps.shape)
        values_at.append(dict(zip(steps.tolist(), values.tolist(), strict=True)))
    common = sorted(set.intersection(*map(set, values_at)))
    if not common:
        raise ValueError(f"The runs of {name!r} have no step in common. Evaluate them at the same steps.")
    return np.array(common), np.array([[run[step] for step in common] for run in values_at])
