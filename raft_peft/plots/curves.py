"""Pictures of a quantity over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raft_peft.plots.panels import array_of, panels, range_of, save

# Taken in turn with matplotlib's ten colours, so that no two of twenty lines are alike.
LINE_STYLES = ["-", "--", "-.", ":"]


def plot_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]],
    *,
    x_label: str = "step",
    y_label: str = "validation RMSE",
    title: str = "",
    log_x: bool = False,
) -> None:
    """Draw a quantity over the steps of training, one line a method (the paper's Figure 5).

    The line is the mean over the runs of a method, at the steps that all of them have; the band reaches from the
    least to the greatest. The axis is logarithmic where the values span more than a factor of ten.

    Args:
        path: the image file to write.
        curves: a name and the runs of each method: steps and values, each of shape (evaluations,).
        x_label, y_label: what steps and values are.
        title: above the picture.
        log_x: whether the axis of steps is logarithmic, with a mark at each step, as for numbers of training rows.

    Raises:
        ValueError: there are no curves, a method has no runs, its runs have no step in common, or steps and values
            differ in shape.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    lines = {name: _common_steps(name, runs) for name, runs in curves.items()}
    figure, (axis,) = panels([lines] if lines else [], size=(8.4, 4.8), title=title, x_label=x_label, y_label=y_label)
    for index, (name, (steps, values)) in enumerate(lines.items()):
        color, style = f"C{index % 10}", LINE_STYLES[index % len(LINE_STYLES)]
        axis.plot(
            steps, values.mean(0), color=color, linestyle=style, linewidth=1.6, marker="o", markersize=3, label=name
        )
        axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    low, high = range_of(*(values for _, values in lines.values()))
    if 0 < 10 * low < high:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    if log_x:
        marks = np.unique(np.concatenate([steps for steps, _ in lines.values()]))
        axis.set_xscale("log")
        axis.set_xticks(marks, [f"{mark:,.0f}" for mark in marks])
        axis.xaxis.set_minor_locator(NullLocator())
    figure.legend(frameon=False, loc="outside right upper", handlelength=3)
    save(figure, path)


def _common_steps(name: str, runs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all runs of a method have, of shape (steps,), and the values there, of shape (runs, steps)."""
    if len(runs) == 0:
        raise ValueError(f"`curves[{name!r}]` has no runs. Leave the method out.")
    values_at: list[dict[float, float]] = []
    for run, (steps, values) in enumerate(runs):
        steps = np.asarray(steps, dtype=np.float64)
        values = array_of(f"curves[{name!r}][{run}] values", values, steps.shape)
        values_at.append(dict(zip(steps.tolist(), values.tolist(), strict=True)))
    common = sorted(set.intersection(*map(set, values_at)))
    if not common:
        raise ValueError(f"The runs of {name!r} have no step in common. Evaluate them at the same steps.")
    return np.array(common), np.array([[run[step] for step in common] for run in values_at])
