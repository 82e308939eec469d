"""The ranked probability score (RPS), the CRPS of ordered classes, which are all equally far from their neighbours."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss
from raft_peft.losses.crps import CRPS
from raft_peft.losses.label_shares import two_hot


class RankedProbabilityScore(DistributionLoss):
    """The mean over the gaps between K ordered numbers of (P(answer <= k) - 1[label <= k])^2, without a unit, 0 to 1.

    It is the CRPS on the ranks 0, 1, ..., K - 1 divided by K - 1 (Epstein, 1969). On an evenly spaced grid its
    minimiser is that of the CRPS; on another one the mean of the ranks is kept, and not that of the numbers.
    """

    labels_within_grid = True

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        ranks = distribution.values.argsort().argsort().float()
        target_rank = (two_hot(target, distribution.values) * ranks).sum(-1)
        return CRPS()(GridDistribution(distribution.log_probs, ranks), target_rank) / (len(ranks) - 1)
