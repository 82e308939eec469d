"""What was read behind several reasonings, as one distribution of their row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from raft_peft.distribution import GridDistribution
from raft_peft.methods.readout import Reading, Readout


def mean_distribution(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The log-probabilities of the mean of several distributions, for each of several rows, of shape (rows, grid).

    Args:
        parts: for each row the log-probabilities of its distributions, of shape (distributions, grid).
    """
    padded = pad_sequence(list(parts), batch_first=True, padding_value=-math.inf)
    counts = torch.tensor([len(part) for part in parts], device=padded.device)
    return padded.logsumexp(1) - counts.log().unsqueeze(1)


def mean_reading(reading: Reading, counts: Sequence[int], readout: Readout) -> Reading:
    """The reading of each row, from those behind its reasonings.

    The distribution of a row is the mean of theirs, and its prediction is decided by that. A number that a head gives
    alone, or that was parsed, is the mean of theirs.

    Args:
        reading: behind each reasoning, those of one row together.
        counts: the reasonings of each row.
        readout: the method at work.
    """
    if all(count == 1 for count in counts):
        return reading
    parts = list(counts)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.mean(0) for part in values.split(parts)])

    distribution = reading.distribution
    if distribution is not None:
        distribution = GridDistribution(mean_distribution(distribution.log_probs.split(parts)), distribution.values)
    parsed = None if reading.parsed is None else mean(reading.parsed)
    if distribution is None or parsed is not None:
        return Reading(mean(reading.predictions), distribution, parsed)
    return Reading(readout.decide(distribution), distribution, None)
