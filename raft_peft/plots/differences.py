"""A picture of differences from a baseline, with their intervals (a forest plot)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raft_peft.plots.panels import array_of, panels, save

_BETTER, _WORSE, _NOT_TOLD_APART = "C0", "C3", "0.55"


def plot_differences(
    path: str | Path,
    differences: Mapping[str, Mapping[str, npt.ArrayLike]],
    *,
    more_is_better: Mapping[str, bool],
    baseline: str,
    title: str = "",
) -> None:
    """Draw how far methods are from a baseline, one panel a metric, one line a method.

    An interval that does not hold 0 is blue where the method is better, and red where it is worse.

    Args:
        path: the image file to write.
        differences: for each metric and each method, the difference and the two ends of its interval, of shape (3,).
            A method that a metric lacks has none there.
        more_is_better: of each metric.
        baseline: what 0 stands for.
        title: above the picture.

    Raises:
        ValueError: there are none, or the shape does not fit.
    """
    names = list(dict.fromkeys(name for of_methods in differences.values() for name in of_methods))
    drawn = {
        metric: {name: array_of(f"differences[{metric!r}][{name!r}]", ends, (3,)) for name, ends in of_methods.items()}
        for metric, of_methods in differences.items()
        if of_methods
    }
    size = (4.6, 1.6 + 0.32 * len(names))
    figure, axes = panels(drawn, size=size, title=title, x_label="", y_label="")
    for axis, (metric, of_methods) in zip(axes, drawn.items(), strict=True):
        axis.axvline(0, color="0.3", linewidth=1)
        for place, name in enumerate(names):
            if name not in of_methods:
                continue
            value, low, high = of_methods[name]
            color = _color(low, high, more_is_better=more_is_better[metric])
            axis.plot([low, high], [place, place], color=color, linewidth=2)
            axis.plot(value, place, color=color, marker="o", markersize=6)
        axis.set_yticks(np.arange(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel(
            f"{metric} minus that of {baseline}\n({'more' if more_is_better[metric] else 'less'} is better)"
        )
    save(figure, path)


def _color(low: float, high: float, *, more_is_better: bool) -> str:
    if low <= 0 <= high:
        return _NOT_TOLD_APART
    return _BETTER if (low > 0) == more_is_better else _WORSE
