"""Paired differences: is a method better than a baseline on the same test rows, or is it chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raft_peft.compare.lines import Line

BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"
LEVEL = 0.95
RESAMPLES = 2_000
# Keeps the memory of the samples below 100 MiB.
_COUNTS_AT_ONCE = 2**22
# Whether more is better, of each metric that is compared.
COMPARED = {"rmse": False, "mae": False, "pearson": True, "crps": False}


@dataclass(frozen=True)
class Difference:
    """A metric of a method minus that of the baseline, each the mean over its seeds.

    Attributes:
        difference: in the unit of the metric.
        low, high: the ends of its interval of level 0.95.
        verdict: "better" or "worse" where 0 is outside the interval, else "not told apart".
    """

    difference: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class AgainstBaseline:
    """A line of the table against the baseline, trained on as many rows.

    Attributes:
        method: label of the line.
        baseline: label of the baseline's.
        train_rows: that both were trained on.
        metrics: the difference in each metric that both have.
        seeds_are_known: whether the interval knows how much the seeds vary. False where one of the two is random and
            has one seed: the interval then holds for these weights, and not for the method.
    """

    method: str
    baseline: str
    train_rows: int
    metrics: Mapping[str, Difference]
    seeds_are_known: bool


def compare_lines(lines: Sequence[Line], baseline: Line, labels: np.ndarray) -> list[AgainstBaseline]:
    """Each line but the baseline against it, on the same rows.

    The error of a difference has two parts, which are independent and add up as variances:

    - Which rows were drawn for the test. It is the variance of the difference over 2,000 bootstrap samples of the
      rows. A sample is the same for both methods and for all their seeds, since they are tested on the same rows: what
      is hard in a row is hard for both, and cancels.
    - Which seeds were drawn. For each method it is the sample variance of its metric over the seeds, divided by their
      number. The seeds are not resampled as well: of two or three, that finds a half or two thirds of their variance,
      and intervals of 95 % held in 70 to 88 % of simulated comparisons in which seeds mattered.

    The interval is the difference plus and minus the error times the quantile of Student's t, with the degrees of
    freedom of Welch and Satterthwaite. With few seeds it is wide, as it must be. In simulated comparisons of two,
    three and five seeds it held in 92 to 99 %. Each interval is by itself: of twenty methods that are as good as the
    baseline, one is called better or worse on average.

    Args:
        lines: trained on as many rows as the baseline. The mean of the labels is one of them.
        baseline: one of the lines, or another.
        labels: of the test rows, of shape (rows,).
    """
    of_baseline = _resampled(baseline, labels)
    return [
        AgainstBaseline(
            line.label,
            baseline.label,
            line.train_rows,
            _differences(_resampled(line, labels), of_baseline, rows=len(labels)),
            seeds_are_known=not any(one.is_random and len(one.runs) < 2 for one in (line, baseline)),
        )
        for line in lines
        if line.label != baseline.label
    ]


def _resampled(line: Line, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric over all rows, and over bootstrap samples of them, of shape (1 + samples, runs).

    The samples are the same at every call, which pairs the lines.
    """
    # Correlations are of centred numbers, so that no digits are lost. The centre changes nothing else.
    x, y = line.predictions - line.predictions.mean(1, keepdims=True), np.broadcast_to(labels, line.predictions.shape)
    y = y - labels.mean()
    errors = line.predictions - labels
    of_rows = [errors**2, np.abs(errors), x, y, x * x, y * y, x * y, *([] if line.crps is None else [line.crps])]
    means = _means_of_samples(np.array(of_rows))
    squares, absolute, x, y, xx, yy, xy = means[:7]
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson = (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))
    # A constant correlates with nothing, though rounding may say otherwise.
    pearson[:, np.ptp(line.predictions, axis=1) == 0] = np.nan
    found = {"rmse": np.sqrt(squares), "mae": absolute, "pearson": pearson}
    return found if line.crps is None else {**found, "crps": means[7]}


def _means_of_samples(of_rows: np.ndarray) -> np.ndarray:
    """The means over the last axis and over samples of it, from (..., runs, rows) to (..., 1 + samples, runs)."""
    rows, random = of_rows.shape[-1], np.random.default_rng(0)
    flat = of_rows.reshape(-1, rows)
    means = [flat.mean(1)[None]]
    for first in range(0, RESAMPLES, at_once := max(1, _COUNTS_AT_ONCE // rows)):
        samples = min(at_once, RESAMPLES - first)
        drawn = random.integers(rows, size=(samples, rows)) + rows * np.arange(samples)[:, None]
        # How often each row is in each sample.
        counts = np.bincount(drawn.ravel(), minlength=samples * rows).reshape(samples, rows)
        means.append(counts @ flat.T / rows)
    return np.moveaxis(np.concatenate(means).reshape(-1, *of_rows.shape[:-1]), 0, -2)


def _differences(
    line: Mapping[str, np.ndarray], baseline: Mapping[str, np.ndarray], rows: int
) -> dict[str, Difference]:
    found = {name: _difference(line[name], baseline[name], rows) for name in line if name in baseline}
    return {
        name: Difference(value, value - half, value + half, _verdict(value, half, more_is_better=COMPARED[name]))
        for name, (value, half) in found.items()
        if math.isfinite(value) and math.isfinite(half)
    }


def _difference(line: np.ndarray, baseline: np.ndarray, rows: int) -> tuple[float, float]:
    """A difference and half the width of its interval, of a metric as [`_resampled`] gives it."""
    from scipy import stats

    over_seeds = line.mean(1) - baseline.mean(1)
    if rows < 2 or not math.isfinite(over_seeds[0]):
        return float(over_seeds[0]), math.nan
    # Each part of the variance, and its degrees of freedom. Where rows are few, a sample may have no correlation.
    parts = [(float(np.nanvar(over_seeds[1:], ddof=1)), rows - 1)]
    parts += [
        (float(one[0].var(ddof=1)) / one.shape[1], one.shape[1] - 1) for one in (line, baseline) if one.shape[1] > 1
    ]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return float(over_seeds[0]), 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(over_seeds[0]), float(stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(variance))


def _verdict(value: float, half: float, *, more_is_better: bool) -> str:
    if abs(value) <= half:
        return NOT_TOLD_APART
    return BETTER if (value > 0) == more_is_better else WORSE
