"""A picture of what training costs, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raft_peft.plots.curves import LINE_STYLES
from raft_peft.plots.panels import array_of, panels, save, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]


def plot_cost(
    path: str | Path,
    curves: Mapping[str, Runs],
    results: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    untrained: Mapping[str, float] | None = None,
    x_label: str = "training, seconds",
    title: str = "",
) -> None:
    """Draw a method's RMSE against its cost: on validation while it is trained, and on the test in the end.

    Left, each method is one line, the mean over its runs: of the costs and of the values at the same evaluation.
    Right, each run is a point, and those of a method have one colour.

    Args:
        path: the image file to write.
        curves: a name and the runs of each method: costs and validation RMSE, each of shape (evaluations,). A longer
            run is cut to the evaluations that all runs of its method have.
        results: a name and, of the same methods, the cost and the test RMSE of each run, each of shape (runs,).
        untrained: the test RMSE of methods that cost nothing, drawn as dotted lines.
        x_label: what the costs are.
        title: above the picture.

    Raises:
        ValueError: there are no curves, a method has no runs, or the shapes do not fit.
    """
    names = ["validation", "test"] if curves else []
    figure, (left, right) = panels(names, size=(5.6, 4.6), title=title, x_label=x_label, y_label="RMSE")
    for index, (name, runs) in enumerate(curves.items()):
        color, style = f"C{index % 10}", LINE_STYLES[index % len(LINE_STYLES)]
        costs, values = _mean_run(name, runs)
        left.plot(costs, values, color=color, linestyle=style, linewidth=1.6, marker="o", markersize=3, label=name)
        if name in results:
            of_runs = vector(f"results[{name!r}] costs", results[name][0])
            errors = array_of(f"results[{name!r}] values", results[name][1], of_runs.shape)
            right.scatter(of_runs, errors, s=36, color=color, alpha=0.8, linewidths=0)
    _draw_untrained(right, untrained or {}, first=len(curves))
    left.set_title("on validation, while training", fontsize=11)
    right.set_title("on the test, each run", fontsize=11)
    dearest = max((float(np.max(costs)) for costs, _ in results.values()), default=1.0)
    right.set_xlim(0, 1.05 * dearest or 1.0)
    handles = [handle for axis in (left, right) for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, loc="outside right upper", handlelength=3)
    save(figure, path)


def _mean_run(name: str, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """The means over the runs of a method, each of shape (evaluations,)."""
    if len(runs) == 0:
        raise ValueError(f"`curves[{name!r}]` has no runs. Leave the method out.")
    pairs = []
    for run, (costs, values) in enumerate(runs):
        costs = vector(f"curves[{name!r}][{run}] costs", costs)
        pairs.append((costs, array_of(f"curves[{name!r}][{run}] values", values, costs.shape)))
    common = min(len(costs) for costs, _ in pairs)
    means = np.mean([[costs[:common], values[:common]] for costs, values in pairs], axis=0)
    return means[0], means[1]


def _draw_untrained(axis: Axes, untrained: Mapping[str, float], first: int) -> None:
    for index, (name, value) in enumerate(untrained.items(), start=first):
        axis.axhline(value, color=f"C{index % 10}", linestyle=":", linewidth=1.6, label=name)
