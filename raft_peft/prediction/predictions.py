"""What `predict` gives: numbers; and where they are asked for, intervals and the distributions behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from raft_peft.distribution import GridDistribution
from raft_peft.methods.readout import Reading


class PredictionsWithIntervals(NamedTuple):
    """One number a prompt, and the ends of the interval around each, all of shape (prompts,)."""

    predictions: np.ndarray
    low: np.ndarray
    high: np.ndarray


class PredictionsWithDistribution(NamedTuple):
    """One number a prompt, of shape (prompts,), and the distributions over the grid that they were read from."""

    predictions: np.ndarray
    distribution: GridDistribution


class PredictionsWithIntervalsAndDistribution(NamedTuple):
    """[`PredictionsWithIntervals`], and the distributions over the grid that the predictions were read from."""

    predictions: np.ndarray
    low: np.ndarray
    high: np.ndarray
    distribution: GridDistribution


class PredictOptions(TypedDict, total=False):
    """The arguments of `RegressionPredictor.predict` that do not change what kind of thing it gives."""

    batch_tokens: int
    groups: str | Iterable[Any] | None
    calibrated: bool
    num_reasonings: int
    temperature: float
    max_reasoning_tokens: int
    seed: int | None
    show_progress: bool | None


Predictions = (
    np.ndarray | PredictionsWithIntervals | PredictionsWithDistribution | PredictionsWithIntervalsAndDistribution
)


def predictions_of(readings: Iterable[Reading]) -> np.ndarray:
    """The predictions of all readings, float32, of shape (prompts,)."""
    return torch.cat([torch.empty(0), *(reading.predictions for reading in readings)]).numpy()


def predictions_and_distribution(
    readings: Iterable[Reading], values: torch.Tensor, method: str
) -> PredictionsWithDistribution:
    """The predictions and the distributions of all readings.

    Args:
        readings: on the CPU.
        values: the numbers that there are probabilities for, of shape (grid,).
        method: by which the readings were made, for the message.

    Raises:
        ValueError: the method gives a number alone.
    """
    predictions, log_probs = [torch.empty(0)], [torch.empty(0, len(values))]
    for reading in readings:
        if reading.distribution is None:
            raise ValueError(
                f"Method {method!r} gives one number a prompt, and no distribution over the grid. "
                "Use `predict` alone, or a method that does, such as raft."
            )
        predictions.append(reading.predictions)
        log_probs.append(reading.distribution.log_probs)
    distribution = GridDistribution(torch.cat(log_probs), values.cpu())
    return PredictionsWithDistribution(torch.cat(predictions).numpy(), distribution)


def as_asked(
    predictions: np.ndarray, ends: tuple[np.ndarray, np.ndarray] | None, distribution: GridDistribution | None
) -> Predictions:
    """The predictions, with the ends of intervals and with distributions where there are any."""
    if ends is None:
        return predictions if distribution is None else PredictionsWithDistribution(predictions, distribution)
    if distribution is None:
        return PredictionsWithIntervals(predictions, *ends)
    return PredictionsWithIntervalsAndDistribution(predictions, *ends, distribution)
