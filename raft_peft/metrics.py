"""Metrics of regression, on NumPy arrays of shape (examples,)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raft_peft.distribution import GridDistribution

Numbers = npt.ArrayLike

# What `distribution_metrics` gives.
DISTRIBUTION_METRICS = (
    *("crps", "nll", "calibration_error", "rater_distance"),
    *("central_90_coverage", "central_90_width"),
)


def rmse(prediction: Numbers, target: Numbers) -> float:
    """Root of the mean squared error, in the unit of the target.

    >>> rmse([1, 2], [1, 4])
    1.4142135623730951
    """
    return float(np.sqrt(np.mean(_errors(prediction, target) ** 2)))


def mae(prediction: Numbers, target: Numbers) -> float:
    """Mean absolute error, in the unit of the target.

    >>> mae([1, 2], [1, 4])
    1.0
    """
    return float(np.mean(np.abs(_errors(prediction, target))))


def pearson(prediction: Numbers, target: Numbers) -> float:
    """Pearson's correlation, -1 to 1; NaN with a warning where either side is constant."""
    from scipy import stats

    return _correlation("Pearson", lambda x, y: stats.pearsonr(x, y).statistic, prediction, target)


def spearman(prediction: Numbers, target: Numbers) -> float:
    """Spearman's rank correlation, -1 to 1; NaN with a warning where either side is constant."""
    from scipy import stats

    return _correlation("Spearman", lambda x, y: stats.spearmanr(x, y).statistic, prediction, target)


def kendall(prediction: Numbers, target: Numbers) -> float:
    """Kendall's rank correlation tau-b, -1 to 1; NaN with a warning where either side is constant."""
    from scipy import stats

    return _correlation("Kendall", lambda x, y: stats.kendalltau(x, y).statistic, prediction, target)


def qwk(prediction: Numbers, target: Numbers, grid: Numbers) -> float:
    """Quadratic weighted kappa, the agreement of two ratings beyond chance, at most 1.

    Predictions and targets are rounded to the nearest number of the grid, half to the higher one. Disagreements are
    weighted by the squared distance of the ranks of the two numbers. NaN where both sides are one number.

    >>> qwk([1.2, 2, 3], [1, 2, 3], [1, 2, 3])
    1.0

    Args:
        prediction, target: of shape (rows,).
        grid: two numbers or more.
    """
    from sklearn.metrics import cohen_kappa_score

    _errors(prediction, target)
    values = np.sort(np.asarray(grid, dtype=np.float64))
    middles = (values[1:] + values[:-1]) / 2
    ranks = [
        np.searchsorted(middles, np.asarray(side, dtype=np.float64), side="right") for side in (prediction, target)
    ]
    if not np.isfinite(np.asarray(prediction, dtype=np.float64)).all() or np.ptp(np.concatenate(ranks)) == 0:
        return float("nan")
    return float(cohen_kappa_score(*ranks, labels=range(len(values)), weights="quadratic"))


def rmse_of_mean(target: Numbers) -> float:
    """The RMSE of one constant prediction for all rows, the best there is: the mean of these targets.

    It is the standard deviation of the targets. Predictions that are worse say less than their mean does.

    >>> rmse_of_mean([1, 4, 4, 7])
    2.1213203435596424
    """
    return float(np.asarray(target, dtype=np.float64).std())


def r2(prediction: Numbers, target: Numbers) -> float:
    """R squared, the share of the targets' variance that the predictions explain: 1 - (rmse / rmse_of_mean)^2.

    At most 1; 0 for the mean of the targets, below 0 for what is worse; NaN where the targets are constant.

    >>> r2([2, 4, 4, 6], [1, 4, 4, 7])
    0.8888888888888888
    """
    error = rmse(prediction, target)
    return 1 - (error / rmse_of_mean(target)) ** 2 if np.ptp(np.asarray(target)) > 0 else float("nan")


def regression_metrics(prediction: Numbers, target: Numbers) -> dict[str, float]:
    """Under their names `rmse`, `mae`, `pearson`, `spearman`, `kendall`, `r2` and `rmse_of_mean`."""
    of_both = {metric.__name__: metric(prediction, target) for metric in (rmse, mae, pearson, spearman, kendall, r2)}
    return {**of_both, "rmse_of_mean": rmse_of_mean(target)}


def rail_metrics(rail: Numbers, target: Numbers) -> dict[str, float]:
    """The metrics of the expectation beside those of the number in a text, by names that begin with `rail_`.

    They are those of `regression_metrics` but for `rmse_of_mean`, which is of the targets alone.
    """
    metrics = regression_metrics(rail, target)
    return {f"rail_{name}": value for name, value in metrics.items() if name != "rmse_of_mean"}


def pair_metrics(chosen: Numbers, rejected: Numbers) -> dict[str, float]:
    """Of preferences: `pair_accuracy` and `pair_margin`; NaN without pairs.

    They are the share of the pairs whose chosen prompt has the greater prediction, in which equal ones count as
    wrong, and the mean difference, in the unit of the labels.

    >>> pair_metrics([3, 2, 2], [1, 2, 4])
    {'pair_accuracy': 0.3333333333333333, 'pair_margin': 0.0}
    """
    differences = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    if not len(differences):
        return {"pair_accuracy": np.nan, "pair_margin": np.nan}
    # A prediction that is not a number must not look like a wrong one.
    right = np.where(np.isnan(differences), np.nan, differences > 0)
    return {"pair_accuracy": float(right.mean()), "pair_margin": float(differences.mean())}


def interval_metrics(low: Numbers, high: Numbers, target: Numbers) -> dict[str, float]:
    """How well intervals hold: the share of targets that lie within theirs, `coverage`, and their `mean_width`.

    >>> interval_metrics([0, 1], [2, 2], [1, 3])
    {'coverage': 0.5, 'mean_width': 1.5}
    """
    below, above, widths = _errors(low, target), _errors(high, target), _errors(high, low)
    return {"coverage": float(np.mean((below <= 0) & (above >= 0))), "mean_width": float(np.mean(widths))}


def set_metrics(sets: np.ndarray, shares: Numbers) -> dict[str, float]:
    """How well sets of options hold: the mean share of targets that lies in theirs, `coverage`, and `mean_options`.

    Args:
        sets: which options lie in the set of each row, of shape (rows, options).
        shares: the targets as shares of the options, which sum to 1, of the same shape.

    >>> set_metrics(np.array([[True, True, False], [False, True, False]]), [[0, 1, 0], [0.5, 0.5, 0]])
    {'coverage': 0.75, 'mean_options': 1.5}
    """
    inside = np.asarray(sets, dtype=bool)
    covered = (np.asarray(shares, dtype=np.float64) * inside).sum(1)
    return {"coverage": float(covered.mean()), "mean_options": float(inside.sum(1).mean())}


def grid_metrics(log_probs: Numbers) -> dict[str, float]:
    """How much a model answers with a number at all, and how sure it is of which: means over the rows.

    Args:
        log_probs: those of the grid's numbers, over the whole vocabulary, in nats, of shape (examples, grid).

    Returns:
        `grid_mass`, the probability of the grid, 0 to 1, and `entropy`, in nats, of the distribution renormalized over
        the grid, 0 to log(grid).

    >>> grid_metrics(np.log([[0.25, 0.25]]))
    {'grid_mass': 0.5, 'entropy': 0.6931471805599453}
    """
    from scipy import special

    log_probs = np.asarray(log_probs, dtype=np.float64)
    entropy = special.entr(special.softmax(log_probs, axis=-1)).sum(-1)
    return {"grid_mass": float(np.exp(log_probs).sum(-1).mean()), "entropy": float(entropy.mean())}


def crps_by_row(
    log_probs: Numbers, values: Numbers, label_shares: Numbers, beyond: Numbers | None = None
) -> np.ndarray:
    """The continuous ranked probability score of each row, in the unit of the labels, of shape (rows,).

    Args:
        log_probs, values, label_shares, beyond: as in [`distribution_metrics`].
    """
    _, p, shares, numbers = _in_order(log_probs, values, label_shares)
    below, label_below = p.cumsum(-1)[:, :-1], shares.cumsum(-1)[:, :-1]
    crps = ((below**2 - 2 * below * label_below + label_below) * np.diff(numbers)).sum(-1)
    return crps + (0 if beyond is None else np.asarray(beyond, dtype=np.float64))


def _in_order(
    log_probs: Numbers, values: Numbers, label_shares: Numbers
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities given the grid, probabilities, shares, and the numbers, from the least number on."""
    from scipy import special

    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(numbers)
    log_p = special.log_softmax(np.asarray(log_probs, dtype=np.float64)[:, order], axis=-1)
    return log_p, np.exp(log_p), np.asarray(label_shares, dtype=np.float64)[:, order], numbers[order]


def distribution_metrics(
    log_probs: Numbers,
    values: Numbers,
    label_shares: Numbers,
    rated: Numbers | None = None,
    beyond: Numbers | None = None,
) -> dict[str, float]:
    """How good the distributions are, given that the answer is on the grid: means over the rows.

    Args:
        log_probs: of the grid's numbers, in nats, of shape (rows, grid).
        values: the grid's numbers, in any order, of shape (grid,).
        label_shares: each label as shares of the grid, as `label_shares.two_hot` gives them; of several ratings, their
            mean. A label beyond the grid has its share at the end. Of shape (rows, grid).
        rated: which rows have ratings, of shape (rows,); None where none has.
        beyond: how far each label is beyond the grid, of several ratings on average, of shape (rows,); None where none
            is. It is added to the CRPS, which is then exact. The other metrics take such a label for the end.

    Returns:
        `crps`, the continuous ranked probability score in the unit of the labels; `nll`, the cross-entropy of the
        shares in nats; `calibration_error`, the mean over the gaps of the grid of the difference between the predicted
        P(Y <= t) and its observed frequency, over ten bins of the former, 0 to 1; `central_90_coverage`, the share of
        the labels in the central interval of level 0.9, and `central_90_width`; and, of rows with ratings,
        `rater_distance`, the total variation distance from the ratings' distribution, 0 to 1.
    """
    log_p, p, shares, numbers = _in_order(log_probs, values, label_shares)
    below, label_below = p.cumsum(-1)[:, :-1], shares.cumsum(-1)[:, :-1]
    # A number that is ruled out costs nothing where no label is.
    costs = np.where(shares > 0, -shares * np.where(shares > 0, log_p, 0), 0)
    distribution = GridDistribution(torch.from_numpy(log_p), torch.from_numpy(numbers))
    low, high = (end.numpy() for end in distribution.interval(0.9))
    inside = (numbers >= low[:, None]) & (numbers <= high[:, None])
    metrics = {
        "crps": crps_by_row(log_probs, values, label_shares, beyond).mean(),
        "nll": costs.sum(-1).mean(),
        "calibration_error": np.mean([_calibration_error(*gap) for gap in zip(below.T, label_below.T, strict=True)]),
        "central_90_coverage": (shares * inside).sum(-1).mean(),
        "central_90_width": (high - low).mean(),
    }
    if rated is not None and np.any(rated):
        distances = np.abs(p - shares).sum(-1) / 2
        metrics["rater_distance"] = distances[np.asarray(rated, dtype=bool)].mean()
    return {name: float(value) for name, value in metrics.items()}


def _calibration_error(predicted: np.ndarray, observed: np.ndarray, bins: int = 10) -> float:
    """The difference of predicted probabilities and observed frequencies, weighted by the rows of each bin."""
    if np.isnan(predicted).any():
        return float("nan")
    bin_of_row = np.minimum((predicted * bins).astype(int), bins - 1)
    differences = np.bincount(bin_of_row, weights=predicted - observed, minlength=bins)
    return float(np.abs(differences).sum() / len(predicted))


def _errors(prediction: Numbers, target: Numbers) -> np.ndarray:
    prediction, target = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if prediction.shape != target.shape or prediction.ndim != 1 or prediction.size == 0:
        raise ValueError(
            "Metrics need predictions and targets of the same shape (examples,), at least one; got "
            f"{prediction.shape} and {target.shape}."
        )
    return prediction - target


def _correlation(
    name: str, correlation: Callable[[np.ndarray, np.ndarray], float], prediction: Numbers, target: Numbers
) -> float:
    _errors(prediction, target)
    x, y = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        constant = "predictions" if np.ptp(x) == 0 else "targets"
        warnings.warn(
            f"{name}'s correlation is undefined: the {constant} are all {x[0] if np.ptp(x) == 0 else y[0]}.",
            stacklevel=3,
        )
        return float("nan")
    return float(correlation(x, y))


@dataclass(frozen=True)
class RowDistributions:
    """The distributions of rows over the grid, beside their labels.

    Attributes:
        values: the numbers of the grid, of shape (grid,).
        log_probs: of these, in nats, of shape (rows, grid).
        label_shares: each label as shares of the grid, of several ratings their mean, of shape (rows, grid).
        rated: which labels are several ratings, of shape (rows,).
        beyond: how far each label is beyond the grid, in the unit of the labels, of shape (rows,).
    """

    values: np.ndarray
    log_probs: np.ndarray
    label_shares: np.ndarray
    rated: np.ndarray
    beyond: np.ndarray

    @property
    def distribution(self) -> GridDistribution:
        """The distributions alone."""
        return GridDistribution(torch.from_numpy(self.log_probs), torch.from_numpy(self.values))

    def of_rows(self, rows: np.ndarray) -> RowDistributions:
        """Those of some rows, by their numbers."""
        return RowDistributions(
            self.values, self.log_probs[rows], self.label_shares[rows], self.rated[rows], self.beyond[rows]
        )

    def crps(self) -> np.ndarray:
        """The score of each row, of shape (rows,); see [`crps_by_row`]."""
        return crps_by_row(self.log_probs, self.values, self.label_shares, self.beyond)

    def metrics(self) -> dict[str, float]:
        """Those of `distribution_metrics`."""
        return distribution_metrics(self.log_probs, self.values, self.label_shares, self.rated, self.beyond)


@dataclass(frozen=True)
class Evaluation:
    """What a model says of rows whose labels are known.

    Attributes:
        predictions: one number a row, in the unit of the labels, of shape (rows,).
        labels: of the same shape.
        metrics: those of `regression_metrics`, and `qwk`; where there is a distribution, those of
            `distribution_metrics`, and of one over the whole vocabulary, grid_mass and entropy (in nats), each a mean
            over the rows; and where there is a calibration, the level of the intervals as `interval`, and those of
            `interval_metrics`.
        step: after how many steps of training the weights were as they were then; 0 before any, or where that is not
            known.
        distributions: of the rows; None where the method has none, or the grid is one number.
        widths: of the rows' intervals, in the unit of the labels, of shape (rows,); None without a calibration.
        pairs: how many preferences there were beside, which have no labels.
    """

    predictions: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    step: int = 0
    distributions: RowDistributions | None = None
    widths: np.ndarray | None = None
    pairs: int = 0

    def of_rows(self, rows: np.ndarray) -> Evaluation:
        """Some of the rows, by their numbers, with the metrics of all."""
        return replace(
            self,
            predictions=self.predictions[rows],
            labels=self.labels[rows],
            distributions=None if self.distributions is None else self.distributions.of_rows(rows),
            widths=None if self.widths is None else self.widths[rows],
        )

    @property
    def is_flat(self) -> bool:
        """Whether the predictions are all alike, while the labels are not: within a hundredth of the labels' range."""
        return bool(len(self.labels) > 1 and np.ptp(self.predictions) < 0.01 * np.ptp(self.labels))

    def save(self, path: str | Path) -> None:
        """Write the metrics as JSON, null for those that are undefined."""
        metrics = {name: value if np.isfinite(value) else None for name, value in self.metrics.items()}
        Path(path).write_text(json.dumps({"rows": len(self.labels), **metrics}, indent=2) + "\n", encoding="utf-8")
