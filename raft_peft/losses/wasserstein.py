"""The distance of a distribution from its label, the second term of the number token loss."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss


class WassersteinDistance(DistributionLoss):
    """sum over y of p(y | x) |y* - y| given that the answer is on the grid, in the unit of the labels.

    It is the Wasserstein-1 distance of the distribution from a point at the label: the term that the number token loss
    (Zausinger et al., ICML 2025) adds to cross-entropy. By itself it is not proper: its minimiser is one number, the
    one nearest to the median of the labels.
    """

    labels_within_grid = True

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        distances = (target.float().unsqueeze(-1) - distribution.values).abs()
        return (distribution.renormalized().probs * distances).sum(-1)
