"""The page that pictures are drawn on, and the arrays that they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_ACROSS = 4


def panels(
    drawn: Collection[object],
    *,
    size: tuple[float, float] = (4.6, 4.4),
    same_x: bool = False,
    same_y: bool = True,
    title: str,
    x_label: str,
    y_label: str,
) -> tuple[Figure, list[Axes]]:
    """A page with a panel for each of these, at most four across.

    Args:
        drawn: what the panels are for.
        size: width and height of a panel, in inches.
        same_x, same_y: whether the panels have one scale across, and upwards.
        title: above the picture.
        x_label: below the lowest panels.
        y_label: beside the first panels.

    Raises:
        ValueError: there are none.
    """
    if len(drawn) == 0:
        raise ValueError("There is nothing to draw: pass at least one method, with at least one row.")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    down = math.ceil(len(drawn) / _PANELS_ACROSS)
    across = math.ceil(len(drawn) / down)
    figure = Figure(figsize=(size[0] * across, size[1] * down), layout=ConstrainedLayoutEngine(h_pad=0.08))
    grid = list(figure.subplots(down, across, sharex=same_x, sharey=same_y, squeeze=False).flat)
    axes, spare = grid[: len(drawn)], grid[len(drawn) :]
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


def save(figure: Figure, path: str | Path) -> None:
    """Write the picture to a file."""
    figure.savefig(path, dpi=120)


def vector(name: str, numbers: npt.ArrayLike) -> np.ndarray:
    """The numbers as an array of one dimension."""
    return array_of(name, numbers, (np.asarray(numbers).size,))  # np.size does not know tensors


def array_of(name: str, numbers: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers as an array.

    Raises:
        ValueError: it has another shape.
    """
    array = np.asarray(numbers, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` has the shape {array.shape}. It needs {shape}, to fit the other arrays.")
    return array


def range_of(*arrays: np.ndarray) -> tuple[float, float]:
    """The least and the greatest of the finite numbers, apart by one where they are the same; 0 and 1 without any."""
    numbers = np.concatenate([np.empty(0), *(array.ravel() for array in arrays)])
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return 0.0, 1.0
    low, high = float(numbers.min()), float(numbers.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
