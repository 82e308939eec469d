"""Log loss on two values."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss


class LogLoss(DistributionLoss):
    """-t log p - (1 - t) log(1 - p), with p that of the upper value (the paper's Table 15).

    t is the target scaled so that the lower value is 0 and the upper one 1. It reads a distribution over two values
    whose probabilities sum to one, lower and upper in this order, as `UpperValueHead` gives it.
    """

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, 2) and targets of shape (batch,) to losses of shape (batch,)."""
        low, high = distribution.values
        t = ((target.float() - low) / (high - low)).unsqueeze(-1)
        return -(torch.cat([1 - t, t], dim=-1) * distribution.log_probs).sum(-1)
