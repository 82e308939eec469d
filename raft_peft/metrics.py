"""Metrics of regression, on NumPy arrays of shape (examples,)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike


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
    """All of the above under the names `rmse`, `mae`, `pearson`, `spearman`, `r2` and `rmse_of_mean`."""
    of_both = {metric.__name__: metric(prediction, target) for metric in (rmse, mae, pearson, spearman, r2)}
    return {**of_both, "rmse_of_mean": rmse_of_mean(target)}


def rail_metrics(rail: Numbers, target: Numbers) -> dict[str, float]:
    """The metrics of the expectation beside those of the number in a text, by names that begin with `rail_`.

    They are those of `regression_metrics` but for `rmse_of_mean`, which is of the targets alone.
    """
    metrics = regression_metrics(rail, target)
    return {f"rail_{name}": value for name, value in metrics.items() if name != "rmse_of_mean"}


def interval_metrics(low: Numbers, high: Numbers, target: Numbers) -> dict[str, float]:
    """How well intervals hold: the share of targets that lie within theirs, `coverage`, and their `mean_width`.

    >>> interval_metrics([0, 1], [2, 2], [1, 3])
    {'coverage': 0.5, 'mean_width': 1.5}
    """
    below, above, widths = _errors(low, target), _errors(high, target), _errors(high, low)
    return {"coverage": float(np.mean((below <= 0) & (above >= 0))), "mean_width": float(np.mean(widths))}


def grid_metrics(log_probs: Numbers) -> dict[str, float]:
    """How much a model answers with a number at all, and how sure it is of which: means over the rows.

    Args:
        log_probs: those of the grid's numbers, over the whole vocabulary, in nats, of shape (examples, grid).

    Returns:
        `grid_mass`, the probability of the grid, 0 to 1, and `entropy`, in nats, of the distribution renormalised over
        the grid, 0 to log(grid).

    >>> grid_metrics(np.log([[0.25, 0.25]]))
    {'grid_mass': 0.5, 'entropy': 0.6931471805599453}
    """
    from scipy import special

    log_probs = np.asarray(log_probs, dtype=np.float64)
    entropy = special.entr(special.softmax(log_probs, axis=-1)).sum(-1)
    return {"grid_mass": float(np.exp(log_probs).sum(-1).mean()), "entropy": float(entropy.mean())}


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
class Evaluation:
    """What a model says of rows whose labels are known.

    Attributes:
        predictions: one number a row, in the unit of the labels, of shape (rows,).
        labels: of the same shape.
        metrics: those of `regression_metrics`; where there is a distribution over the whole vocabulary, grid_mass
            and entropy (in nats), each a mean over the rows; and where there is a calibration, the level of the
            intervals as `interval`, and those of `interval_metrics`.
        step: after how many steps of training the weights were as they were then; 0 before any, or where that is not
            known.
    """

    predictions: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    step: int = 0

    @property
    def is_flat(self) -> bool:
        """Whether the predictions are all alike, while the labels are not: within a hundredth of the labels' range."""
        return bool(len(self.labels) > 1 and np.ptp(self.predictions) < 0.01 * np.ptp(self.labels))

    def save(self, path: str | Path) -> None:
        """Write the metrics as JSON, null for those that are undefined."""
        metrics = {name: value if np.isfinite(value) else None for name, value in self.metrics.items()}
        Path(path).write_text(json.dumps({"rows": len(self.labels), **metrics}, indent=2) + "\n", encoding="utf-8")
