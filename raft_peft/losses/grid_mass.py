"""The cost of answers off the grid, for losses that do not see them."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss


class GridMass(DistributionLoss):
    """-log of the probability that the model answers with a number of the grid at all, in nats.

    A loss of the distribution given that the answer is on the grid lets the rest of the vocabulary do as it likes:
    trained by CRPS alone, a model may cease to answer with numbers. This pulls all probability onto the grid, and is
    the same for any distribution on it, so the minimiser of the sum is the minimiser of the other loss.
    """

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        # The sum of float32 probabilities may be a little above 1.
        return -distribution.log_probs.logsumexp(-1).clamp(max=0)
