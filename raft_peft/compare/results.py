"""What the runs of a comparison gave, read back from their folders."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raft_peft.compare.run import CURVE, PREDICTIONS, RESULT, Run


@dataclass
class RunResult:
    """A run that is done.

    Attributes:
        folder: where it lies.
        run: what it was told.
        metrics: what `result.json` holds: test metrics, validation RMSE, seconds, bytes.
    """

    folder: Path
    run: Run
    metrics: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RunResult:
        return cls(folder, Run.load(folder), json.loads((folder / RESULT).read_text(encoding="utf-8")))

    @property
    def train_seconds(self) -> float | None:
        return self.metrics["train_seconds"]

    @property
    def seconds(self) -> float:
        """Of the whole run in seconds; of one from before this was kept, those of training and test."""
        in_parts = (self.train_seconds or 0.0) + self.metrics.get("test_seconds", 0.0)
        return float(self.metrics.get("seconds", in_parts))

    @property
    def diverged(self) -> bool:
        """Whether it was trained, and no validation gave a number."""
        return self.run.learning_rate is not None and not math.isfinite(self.metrics["validation_rmse"] or math.nan)

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """The columns of `predictions.csv`, each of shape (rows,)."""
        return _read_columns(self.folder / PREDICTIONS)

    @cached_property
    def curve(self) -> dict[str, np.ndarray]:
        """Steps and validation RMSE, each of shape (evaluations,), and the seconds and tokens of training until then.

        A run from before these were kept has none.
        """
        return _read_columns(self.folder / CURVE)

    @property
    def values(self) -> np.ndarray:
        """The numbers of the distribution, of shape (values,); empty where there is none."""
        return np.array([float(name[2:-1]) for name in self._probability_columns])

    @property
    def probs(self) -> np.ndarray:
        """The probabilities of these numbers, of shape (rows, values)."""
        rows = len(self.predictions["label"])
        return np.array([self.predictions[name] for name in self._probability_columns]).reshape(-1, rows).T

    @property
    def label_shares(self) -> np.ndarray:
        """The labels as shares of these numbers, of shape (rows, values); empty where they are not known."""
        names = [name for name in self.predictions if name.startswith("share(")]
        rows = len(self.predictions["label"])
        return np.array([self.predictions[name] for name in names]).reshape(-1, rows).T

    @property
    def _probability_columns(self) -> list[str]:
        return [name for name in self.predictions if name.startswith("p(")]


def finished_runs(folder: Path) -> list[RunResult]:
    """The runs of a method that are done, by seed."""
    runs = [RunResult.load(path.parent) for path in sorted(folder.glob(f"*/{RESULT}"))]
    return sorted(runs, key=lambda result: result.run.seed)


def best_rate(results: Iterable[RunResult], largest: int | None = None) -> float | None:
    """The learning rate with the lowest validation RMSE at the first seed.

    Args:
        results: of a method.
        largest: the number of training rows at which the rates are tried; None for all of them.
    """
    trained = [result for result in results if result.run.learning_rate is not None]
    tried = [result for result in trained if result.run.seed == 0 and result.run.train_rows == largest]
    usable = [result for result in tried if not result.diverged]
    if not usable:
        return None
    return min(usable, key=lambda result: result.metrics["validation_rmse"]).run.learning_rate


def chosen_runs(
    results: Sequence[RunResult], seeds: int, *, train_rows: int | None = None, largest: int | None = None
) -> list[RunResult]:
    """One run a seed: those at the best learning rate.

    Args:
        results: of a method.
        seeds: how many there are.
        train_rows: that the runs were trained on, None for all. What is not trained is the same for any.
        largest: as in [`best_rate`].
    """
    rate = best_rate(results, largest)
    at_rate = [result for result in results if result.run.learning_rate == rate and result.run.seed < seeds]
    of_size = [result for result in at_rate if rate is None or result.run.train_rows == train_rows]
    return [result for result in of_size if not result.diverged]


def steps_to_convergence(result: RunResult, tolerance: float = 0.02) -> float:
    """The first validated step whose RMSE is within 2 % of the run's best (in the manner of the paper's Table 21).

    Of a run that was at its best at its end it is the last step, and it may converge later.
    """
    rmse = result.curve["rmse"]
    if not np.isfinite(rmse).any():
        return math.nan
    within = rmse <= np.nanmin(rmse) * (1 + tolerance)
    return float(result.curve["step"][-1 if ended_early(result) else np.argmax(within)])


def ended_early(result: RunResult) -> bool:
    """Whether the run ended while it still became better: no validated step was better than its last."""
    rmse = result.curve["rmse"]
    return len(rmse) > 1 and bool(np.isfinite(rmse[-1])) and bool(rmse[-1] <= np.nanmin(rmse))


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    return {name: table[:, index] for index, name in enumerate(header)}
