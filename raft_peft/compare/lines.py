"""The lines of a comparison's tables: what the runs of a method say of the test rows, under one way to predict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.results import RunResult, ended_early, steps_to_convergence
from raft_peft.compare.settings import CompareSettings
from raft_peft.decisions import decide
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.metrics import kendall, mae, pearson, qwk, rmse, spearman

MEAN_OF_LABELS = "mean of the training labels"
_OF_PAIRS = {metric.__name__: metric for metric in (rmse, mae, pearson, spearman, kendall)}
OF_PREDICTIONS = (*_OF_PAIRS, "qwk")
# A method without a distribution has none of these.
OF_DISTRIBUTIONS = ("crps", "calibration_error", "central_90_coverage", "central_90_width")
METRICS = (*OF_PREDICTIONS, *OF_DISTRIBUTIONS)


class Line:
    """A line of the tables: one way to predict, over the runs of a method.

    Attributes:
        label: of the line.
        values: each of [`METRICS`], of shape (runs,); NaN where a run has none.
        runs: of the method, one for each seed; none where nothing was run.
        train_rows: how many rows the runs were trained on.
        predictions: of shape (runs, rows), or without runs (1, rows).
        crps: of each row in the unit of the labels, of shape (runs, rows); None where it is not known.
    """

    def __init__(
        self,
        label: str,
        metrics: Sequence[Mapping[str, float]],
        runs: Sequence[RunResult],
        *,
        train_rows: int = 0,
        predictions: np.ndarray | None = None,
        crps: np.ndarray | None = None,
    ):
        self.label = label
        self.values = {name: np.array([run.get(name, np.nan) for run in metrics], dtype=float) for name in METRICS}
        self.runs = runs
        self.train_rows = train_rows
        self.predictions = np.empty((0, 0)) if predictions is None else predictions
        self.crps = crps

    def mean(self, name: str) -> float:
        return float(self.values[name].mean())

    def std(self, name: str) -> float:
        """The sample standard deviation over the seeds; NaN for one."""
        return float(self.values[name].std(ddof=1)) if len(self.values[name]) > 1 else float("nan")

    @property
    def has_distribution(self) -> bool:
        return not np.isnan(self.values["calibration_error"]).all()

    @property
    def learning_rate(self) -> float | None:
        return self.runs[0].run.learning_rate if self.runs else None

    @property
    def train_seconds(self) -> float | None:
        return self._mean_cost("train_seconds")

    @property
    def train_tokens(self) -> float | None:
        return self._mean_cost("train_tokens")

    def _mean_cost(self, name: str) -> float | None:
        """The mean over the runs that say it: none of a method that is not trained, nor of runs before it was kept."""
        costs = [run.metrics[name] for run in self.runs if run.metrics.get(name) is not None]
        return float(np.mean(costs)) if costs else None

    @property
    def steps(self) -> float | None:
        return float(np.mean([steps_to_convergence(run) for run in self.runs])) if self.train_seconds else None

    @property
    def ended_early(self) -> bool:
        """Whether a run ended before it converged."""
        return any(ended_early(run) for run in self.runs)

    @property
    def memory(self) -> int | None:
        known = [run.metrics["peak_memory_bytes"] for run in self.runs]
        # A server does not tell its own.
        return max((memory for memory in known if memory is not None), default=None)

    @cached_property
    def is_random(self) -> bool:
        """Whether its numbers differ from seed to seed."""
        return bool(self.runs) and ComparedMethod.parse(self.runs[0].run.method).is_random


def prediction_metrics(prediction: np.ndarray, label: np.ndarray, grid: NumberGrid) -> dict[str, float]:
    """The metrics of one number a row; NaN for those that are undefined.

    Args:
        prediction, label: of shape (rows,).
        grid: whose numbers both are rounded to for `qwk`; the comparison's, so that it is the same for all methods.
    """
    with warnings.catch_warnings():
        # The table shows a "-" for the correlation of a constant.
        warnings.filterwarnings("ignore", message=".*correlation is undefined")
        found = {name: metric(prediction, label) for name, metric in _OF_PAIRS.items()}
    return {**found, "qwk": qwk(prediction, label, grid.values) if len(grid) > 1 else float("nan")}


def lines_of(
    label: str, runs: Sequence[RunResult], settings: CompareSettings, grid: NumberGrid, train_rows: int
) -> list[Line]:
    """The lines of a method: one, or for `ce` two, and one for each decision rule that is asked for.

    Args:
        label: of the method.
        runs: of the method, one for each seed, on the same number of training rows.
        settings: of the comparison.
        grid: of the comparison.
        train_rows: that the runs were trained on.
    """

    def line(name: str, numbers: Callable[[RunResult], np.ndarray], *, own: bool = True) -> Line:
        """A line of these numbers, `own` where the distribution beside them is to be judged too."""
        predictions = np.array([numbers(run) for run in runs])
        of_rows = [run.predictions.get("crps") for run in runs]
        metrics = [
            {
                **({key: run.metrics[key] for key in OF_DISTRIBUTIONS if key in run.metrics} if own else {}),
                **prediction_metrics(predicted, run.predictions["label"], grid),
            }
            for run, predicted in zip(runs, predictions, strict=True)
        ]
        known = own and all(row is not None for row in of_rows)
        crps = np.array(of_rows) if known else None
        return Line(name, metrics, runs, train_rows=train_rows, predictions=predictions, crps=crps)

    method = ComparedMethod.parse(label)
    if method.reads_text:
        # The distribution is that behind RAIL, and not of the texts.
        return [
            line(f"{label}, decoded", lambda run: run.predictions["prediction"], own=False),
            line(f"{label}, RAIL", lambda run: run.predictions["rail"]),
        ]
    lines = [line(label, lambda run: run.predictions["prediction"])]
    usual = method.options.get("decision", "mean")
    for rule in settings.decision_rules():
        # Among one number there is nothing to decide.
        if rule != usual and all(run.values.size > 1 for run in runs):
            lines.append(line(f"{label}, {rule}", lambda run, rule=rule: _decided(rule, run), own=False))  # type: ignore[misc]
    return lines


def mean_line(train_labels: Sequence[float], target: np.ndarray, grid: NumberGrid, *, train_rows: int) -> Line:
    """What the same prediction for every row gives: the mean of all training labels."""
    constant = np.full(len(target), np.mean(train_labels))
    metrics = prediction_metrics(constant, target, grid)
    return Line(MEAN_OF_LABELS, [metrics], [], train_rows=train_rows, predictions=constant[None])


def distribution_of(run: RunResult) -> GridDistribution:
    """The distributions of a run over its grid, one for each test row."""
    return GridDistribution(torch.tensor(run.probs).float().log(), torch.tensor(run.values).float())


def _decided(rule: str, run: RunResult) -> np.ndarray:
    renormalize = ComparedMethod.parse(run.run.method).renormalizes(NumberGrid(dict(run.run.grid)))
    return decide(distribution_of(run), rule, renormalize=renormalize).double().numpy()
