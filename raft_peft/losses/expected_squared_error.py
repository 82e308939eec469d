"""The expected squared error over the grid, the exact loss of minimum Bayes risk training (MBR)."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss


class ExpectedSquaredError(DistributionLoss):
    """sum over y of p(str(y) | x) (y* - y)^2 over the grid (the paper's eq. 14).

    Among distributions on the grid, as renormalized, its minimiser is one-hot at the number nearest to the mean of the
    targets, so that targets between the numbers are lost (Lemma 4). Over the whole vocabulary, what is off the grid
    costs nothing, so that the loss is the least, 0, where all probability leaves the grid.

    Args:
        renormalize: divide the probabilities by their sum over the grid first, so that none can leave it.
    """

    def __init__(self, *, renormalize: bool = False):
        self.renormalize = renormalize

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        if self.renormalize:
            distribution = distribution.renormalized()
        errors = (target.float().unsqueeze(-1) - distribution.values).square()
        return (distribution.probs * errors).sum(-1)
