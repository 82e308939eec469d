"""Pictures of predictions: against the truth, and their distributions before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raft_peft.metrics import pearson, rmse
from raft_peft.plots.panels import array_of, panels, range_of, save, vector

if TYPE_CHECKING:
    from matplotlib.artist import Artist

_BINS = 30
_TICKS = 11


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
    target = vector("target", target)
    drawn = {name: array_of(f"predictions[{name!r}]", values, target.shape) for name, values in predictions.items()}
    across = target if x is None else array_of("x", x, target.shape)
    order = np.argsort(across)
    low, high = range_of(target)
    margin = (high - low) / 4
    figure, axes = panels(drawn, title=title, x_label=labels[0] if x is None else x_label, y_label=labels[1])
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
    save(figure, path)


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
    values, targets = vector("values", values), vector("targets", targets)
    shape = (len(targets), len(values))
    order = np.argsort(values)
    values = values[order]
    before, after = (array_of(*pair, shape)[:, order] for pair in (("before", before), ("after", after)))
    shown = np.argsort(targets)[np.linspace(0, len(targets) - 1, min(rows, len(targets))).round().astype(int)]
    figure, axes = panels(shown, size=(4.6, 3.6), title=title, x_label="grid", y_label="probability")
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
    save(figure, path)


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
    before = vector("before", before)
    drawn = {name: array_of(f"changes[{name!r}]", change, before.shape) for name, change in changes.items()}
    bins = np.histogram_bin_edges([0.0, *range_of(*drawn.values())], _BINS).tolist()
    figure, axes = panels(
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
    save(figure, path)
