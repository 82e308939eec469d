"""A picture of how far distributions can be believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from raft_peft.plots.panels import array_of, panels, save, vector

# Without a calibration, what a distribution says itself of how far labels are from its mean.
TWO_DEVIATIONS = "two standard deviations of the distribution"
_BINS = 10


def plot_uncertainty(
    path: str | Path,
    values: npt.ArrayLike,
    probs: npt.ArrayLike,
    label_shares: npt.ArrayLike,
    *,
    widths: npt.ArrayLike,
    errors: npt.ArrayLike,
    title: str = "",
    width_label: str = "width of the interval",
) -> None:
    """Draw three answers to the question whether the distributions of a model can be believed.

    - Reliability: of the predictions that P(Y <= t) is about 0.3, for any t between two numbers of the grid, how often
      is it so? A model that can be believed is on the diagonal.
    - PIT histogram (for discrete distributions: Czado et al., Biometrics 2009): where in its own distribution does a
      label lie? It is flat where the distributions are right, high at both ends where they are too narrow, and high in
      the middle where they are too wide.
    - Width against error: are the intervals of the rows with large errors wider?

    Args:
        path: the image file to write.
        values: the numbers of the grid, two or more, of shape (grid,).
        probs: their probabilities, of shape (rows, grid); divided by their sum.
        label_shares: the labels as shares of the grid, as `two_hot` gives them, of shape (rows, grid).
        widths: of the rows' intervals, in the unit of the labels, of shape (rows,).
        errors: the absolute errors of their predictions, of shape (rows,).
        title: above the picture.
        width_label: what the widths are of.

    Raises:
        ValueError: there are no rows, or the shapes do not fit.
    """
    values, errors = vector("values", values), vector("errors", errors)
    shape = (len(errors), len(values))
    order = np.argsort(values)
    probs, shares = (array_of(*one, shape)[:, order] for one in (("probs", probs), ("label_shares", label_shares)))
    widths = array_of("widths", widths, errors.shape)
    names = ["reliability", "PIT histogram", "interval width and error"] if len(errors) else []
    figure, (reliability, pit, spread) = panels(
        names, size=(4.6, 4.2), same_y=False, title=title, x_label="", y_label=""
    )
    below = (probs / probs.sum(-1, keepdims=True)).cumsum(-1).clip(max=1)
    label_below = shares.cumsum(-1)

    predicted, observed, rows = _by_bins(below[:, :-1].ravel(), label_below[:, :-1].ravel())
    reliability.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    reliability.plot(predicted, observed, color="C0", linewidth=1.2)
    sizes = 12 + 120 * rows / rows.max()
    reliability.scatter(predicted, observed, s=sizes, color="C0", alpha=0.7, linewidths=0, clip_on=False)
    reliability.set(xlabel="predicted P(Y <= t)", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))

    edges = np.linspace(0, 1, _BINS + 1)
    pit.bar(edges[:-1], pit_histogram(below, shares), 1 / _BINS, align="edge", color="C0", alpha=0.6)
    pit.axhline(1, color="0.3", linewidth=1)
    pit.set(xlabel="place of the label in its distribution", ylabel="density", xlim=(0, 1))

    spread.scatter(widths, errors, s=9, color="C0", alpha=0.4, linewidths=0)
    ranks = np.array_split(np.argsort(widths, kind="stable"), min(_BINS, len(widths)))
    means = np.array([[widths[some].mean(), errors[some].mean()] for some in ranks])
    spread.plot(*means.T, color="C3", marker="o", markersize=4, linewidth=1.2, label="mean of a tenth of the rows")
    spread.set(xlabel=width_label, ylabel="absolute error")
    spread.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06))
    for axis, name in zip((reliability, pit, spread), names, strict=True):
        axis.set_title(name, fontsize=11)
    save(figure, path)


def pit_histogram(below: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The density of the places of labels in their distributions, over ten bins from 0 to 1, whose mean is 1.

    A label at a number of the grid has all places between the P(Y < y) and P(Y <= y) of its row alike.

    Args:
        below: P(Y <= y) of each number y of the grid, of shape (rows, grid).
        shares: the labels as shares of the grid, of shape (rows, grid).
    """
    # A number without any probability takes one place, as narrow as can be counted, between 0 and 1.
    height = np.diff(below, prepend=0).clip(min=1e-9)
    start = (below - height).clip(0, 1 - height)
    edges = np.linspace(0, 1, _BINS + 1)
    # The part of each number's jump that lies below an edge, of shape (rows, grid, edges).
    part = ((edges - start[..., None]) / height[..., None]).clip(0, 1)
    return _BINS * (shares[..., None] * np.diff(part, axis=-1)).sum((0, 1)) / shares.sum()


def _by_bins(predicted: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over the bins of predicted probabilities that hold any: the means of both, and how many they are."""
    known = np.isfinite(predicted)
    predicted, observed = predicted[known], observed[known]
    bins = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    used = count > 0
    sums = [np.bincount(bins, weights=side, minlength=_BINS)[used] for side in (predicted, observed)]
    return sums[0] / count[used], sums[1] / count[used], count[used]
