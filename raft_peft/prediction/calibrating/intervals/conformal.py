"""Intervals that hold as often as promised: split conformal prediction from one score a held-out row."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from raft_peft.distribution import GridDistribution

# The roundings of float64, relative to a score or to the range of the grid.
ROUNDING = 1e-9
_NUMBERS_AT_ONCE = 2**21


def rank_of(level: float, rows: int, of: str = "") -> int:
    """The rank, from 1, of the held-out score that a new row's does not exceed with a probability of `level`.

    Among the rows + 1 scores, the new row's has each rank with the same probability, so this is the least rank of at
    least (rows + 1) x level.

    Args:
        level: between 0 and 1.
        rows: how many scores there are.
        of: which rows these are, for the message, as " of the group 'news'".

    Raises:
        ValueError: the level is not between 0 and 1, or higher than so few rows can warrant.
    """
    if not 0 < level < 1:
        raise ValueError(f"`interval={level}` is not between 0 and 1. Pass the share to be covered, such as 0.9.")
    rank = math.ceil((rows + 1) * level - ROUNDING)
    if rank > rows:
        raise ValueError(
            f"{rows} held-out row{'s' * (rows != 1)}{of} cannot warrant intervals of level {level}: calibrate on "
            f"{math.ceil(level / (1 - level) - ROUNDING)} rows or more, or ask for {rows / (rows + 1):.3g} at most."
        )
    return rank


def spreads(distribution: GridDistribution) -> np.ndarray:
    """How far labels are from their predictions, as the distribution knows it: about its standard deviation.

    The variance of a number that was rounded to the grid, gap^2 / 12, is added, so that no interval is a point where
    the model is sure of one number.

    Args:
        distribution: over two numbers or more.

    Returns:
        In the unit of the labels, of shape (rows,), float64; NaN where the distribution is.
    """
    values = distribution.values.double()
    gap = (values.max() - values.min()).item() / (len(values) - 1)
    found = np.sqrt(distribution.std.double().cpu().numpy() ** 2 + gap**2 / 12)
    # Numbers that are trained may have become one and the same.
    return np.maximum(found, np.finfo(np.float32).tiny)


def tails(distribution: GridDistribution, labels: np.ndarray) -> np.ndarray:
    """How far out in its distribution each label lies, the score of distributional conformal prediction.

    2 min(F(label), 1 - F(label)), where F is the cumulative distribution on the grid, see [`_Cumulative`]: 1 at the
    median, near 0 in either tail, 0 beyond the grid (Chernozhukov, Wuthrich and Zhu, PNAS 2021, whose score
    |F(label) - 1/2| has the opposite order). A label lies in the central interval of level 1 - tail, and in no shorter
    one.

    Args:
        distribution: over two numbers or more.
        labels: of shape (rows,).

    Returns:
        Of shape (rows,), float64; NaN where the distribution is.
    """
    labels = np.asarray(labels, dtype=np.float64)
    found = [2 * np.minimum(*cumulative.at(labels[rows])) for rows, cumulative in _parts(distribution)]
    return np.concatenate([np.empty(0), *found])


def central_intervals(distribution: GridDistribution, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that lie as far out as `tail`, or less far: the central intervals of level 1 - tail.

    Args:
        distribution: over two numbers or more.
        tail: from 0 to 1, of shape (rows,).

    Returns:
        The lower and the upper ends, of shape (rows,), float64; infinite where the tail is 0, since a label beyond the
        grid has it; NaN where the distribution is.
    """
    tail = np.asarray(tail, dtype=np.float64)
    found = [cumulative.inverse(tail[rows] / 2 * (1 - ROUNDING)) for rows, cumulative in _parts(distribution)]
    low, high = np.concatenate([np.empty((2, 0)), *found], axis=1)
    unlimited = np.where(tail > 0, 0.0, np.inf)
    return low - unlimited, high + unlimited


def _parts(distribution: GridDistribution) -> Iterator[tuple[slice, _Cumulative]]:
    """Rows of a distribution, as many as fit into memory several times over: a grid can be the whole vocabulary."""
    size = max(1, _NUMBERS_AT_ONCE // len(distribution.values))
    for start in range(0, len(distribution), size):
        rows = slice(start, start + size)
        yield rows, _Cumulative(GridDistribution(distribution.log_probs[rows], distribution.values))


class _Cumulative:
    """The cumulative distribution on the grid, made continuous.

    Between two neighbours g_k and g_(k+1) the step function is F_k. A distribution that was trained by a proper loss
    has in F_k the mean of P(label <= z) over z between them, so F_k is taken in their middle, and interpolated
    linearly. At the ends of the grid it is half the probability of the end, as a label there lies in the middle of
    its own probability; so it is at the numbers in between, where they are evenly spaced.

    Both tails are summed from their own end, since 1 - F has no digits left where it is small.

    Args:
        distribution: over two numbers or more, in any order.
    """

    def __init__(self, distribution: GridDistribution):
        values, order = distribution.values.double().cpu().sort()
        log_probs = distribution.log_probs.double().cpu()[:, order].log_softmax(-1)
        grid, probs = values.numpy(), log_probs.exp().numpy()
        self._knots = np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
        below, above = probs.cumsum(1)[:, :-1], probs[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
        first, last = probs[:, :1] / 2, probs[:, -1:] / 2
        self._below = np.concatenate([first, below, 1 - last], axis=1)
        self._above = np.concatenate([1 - first, above, last], axis=1)

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(y <= number) and P(y >= number) of each row, of shape (rows,); beyond the grid 0 and 1, or 1 and 0."""
        knots, rows = self._knots, np.arange(len(numbers))
        right = np.searchsorted(knots, numbers).clip(1, len(knots) - 1)
        gap = knots[right] - knots[right - 1]
        share = np.divide(numbers - knots[right - 1], gap, out=np.ones_like(gap), where=gap > 0)

        def between(cumulative: np.ndarray) -> np.ndarray:
            return (1 - share) * cumulative[rows, right - 1] + share * cumulative[rows, right]

        left_of, right_of = numbers < knots[0], numbers > knots[-1]
        diverged = np.isnan(self._below).any(1)
        below = np.where(left_of, 0.0, np.where(right_of, 1.0, between(self._below)))
        above = np.where(left_of, 1.0, np.where(right_of, 0.0, between(self._above)))
        return np.where(diverged, np.nan, below), np.where(diverged, np.nan, above)

    def inverse(self, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least number with P(y <= number) >= tail and the greatest with P(y >= number) >= tail, (rows,) each.

        Args:
            tail: at most 1/2, of shape (rows,).
        """
        low = _first_reached(self._knots, self._below, tail)
        high = -_first_reached(-self._knots[::-1], self._above[:, ::-1], tail)
        # At a tail of 1/2 both are the median, and roundings may have put them past each other.
        return np.minimum(low, high), high


def _first_reached(knots: np.ndarray, cumulative: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Where a cumulative distribution that is linear between knots first reaches a tail, of shape (rows,)."""
    rows = np.arange(len(cumulative))
    right = (cumulative >= tail[:, None]).argmax(1)
    left = np.maximum(right - 1, 0)
    rise = cumulative[rows, right] - cumulative[rows, left]
    share = np.divide(tail - cumulative[rows, left], rise, out=np.ones_like(rise), where=rise > 0)
    found = knots[left] + share * (knots[right] - knots[left])
    return np.where(np.isnan(cumulative).any(1), np.nan, found)


def rounded_to_grid(low: np.ndarray, high: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intervals that hold the same numbers of the grid, with the least and the greatest of these as their ends.

    An interval that holds none becomes the number nearest to its middle, which can only cover more labels.

    Args:
        low, high: the ends, finite or NaN, of shape (rows,).
        grid: the numbers, in any order.

    Returns:
        The ends, of shape (rows,), numbers of the grid; NaN where they are.
    """
    grid = np.sort(np.asarray(grid, dtype=np.float64))
    slack = ROUNDING * (grid[-1] - grid[0])
    first = np.searchsorted(grid, low - slack)
    last = np.searchsorted(grid, high + slack, side="right") - 1
    nearest = np.abs((low[:, None] + high[:, None]) / 2 - grid).argmin(1)
    none = first > last
    first, last = np.where(none, nearest, first), np.where(none, nearest, last)
    unknown = np.isnan(low) | np.isnan(high)
    return np.where(unknown, np.nan, grid[first]), np.where(unknown, np.nan, grid[last])
