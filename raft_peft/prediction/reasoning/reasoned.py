"""What was read behind reasonings, and predictions with the reasonings that they stand behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raft_peft.distribution import GridDistribution
from raft_peft.methods.readout import Reading


@dataclass(frozen=True)
class ReasonedReading:
    """A chunk of rows, read behind each of their reasonings.

    Attributes:
        reading: behind each reasoning, those of one row together, on the CPU.
        of_rows: of each row, the mean over its reasonings, see `mean_reading`.
        reasonings: of each row; none where its number was read behind the prompt.
        ended: whether the reasonings ended by themselves; True for those that were given.
        counts: how many readings each row has.
    """

    reading: Reading
    of_rows: Reading
    reasonings: list[list[str]]
    ended: list[list[bool]]
    counts: list[int]

    @classmethod
    def without(cls, reading: Reading) -> ReasonedReading:
        """Of rows without reasonings."""
        rows = len(reading.predictions)
        return cls(reading, reading, [[]] * rows, [[]] * rows, [1] * rows)


@dataclass(frozen=True)
class ReasonedPredictions:
    """Predictions with their reasonings.

    Attributes:
        predictions: one number a row, float32, of shape (rows,): decided by the mean of the distributions behind the
            row's reasonings.
        distribution: this mean, over the whole vocabulary; None where the method gives a number alone.
        reasonings: of each row.
        numbers: the prediction behind each reasoning of each row, each of shape (reasonings of the row,).
        between: the standard deviation of a row's `numbers`, in their unit, of shape (rows,): how much hangs on which
            reasons are found.
        within: the root of the mean variance of the distributions behind a row's reasonings, renormalized over the
            grid, in the same unit, of shape (rows,): what is open when the reasons are known. NaN without
            distribution.
        unfinished: how many of a row's reasonings did not end within `max_reasoning_tokens`, of shape (rows,).
    """

    predictions: np.ndarray
    distribution: GridDistribution | None
    reasonings: list[list[str]]
    numbers: list[np.ndarray]
    between: np.ndarray
    within: np.ndarray
    unfinished: np.ndarray

    @classmethod
    def of(cls, chunks: Iterable[ReasonedReading]) -> ReasonedPredictions:
        """Of chunks of rows, in order."""
        read = list(chunks)
        numbers = [part.numpy() for one in read for part in one.reading.predictions.split(one.counts)]
        within = [_within(one.reading, one.counts) for one in read]
        distributions = [one.of_rows.distribution for one in read if one.of_rows.distribution is not None]
        log_probs = [one.log_probs for one in distributions]
        return cls(
            predictions=torch.cat([torch.empty(0), *(one.of_rows.predictions for one in read)]).numpy(),
            distribution=GridDistribution(torch.cat(log_probs), distributions[0].values) if log_probs else None,
            reasonings=[texts for one in read for texts in one.reasonings],
            numbers=numbers,
            between=np.array([float(np.std(one)) for one in numbers]),
            within=np.concatenate([np.empty(0), *within]),
            unfinished=np.array([sum(not done for done in row) for one in read for row in one.ended], dtype=int),
        )


def _within(reading: Reading, counts: Sequence[int]) -> np.ndarray:
    if reading.distribution is None:
        return np.full(len(counts), np.nan)
    probs, values = reading.distribution.renormalized().probs, reading.distribution.values
    mean = (probs * values).sum(-1, keepdim=True)
    variance = (probs * (values - mean).square()).sum(-1)
    return np.array([part.mean().sqrt().item() for part in variance.split(list(counts))])
