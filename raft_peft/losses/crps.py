"""The continuous ranked probability score (CRPS), a proper loss whose minimiser keeps the mean."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss
from raft_peft.losses.label_shares import beyond_grid, two_hot


class CRPS(DistributionLoss):
    """The integral over z of (F(z) - 1[z >= y])^2 (Gneiting and Raftery, JASA 2007), in the unit of the labels.

    F is the distribution given that the answer is on the grid, a step function with a jump at each number. The
    integral is exact, also for labels between the numbers and beyond them. With F_k the value of F between the numbers
    g_k and g_(k+1), and a_k the mean of 1[z >= y] over that gap, a gap adds (g_(k+1) - g_k) (F_k^2 - 2 F_k a_k + a_k).
    Of labels within the grid, the expected loss is the least at F_k = E[a_k], whose mean is E[y].
    """

    labels_within_grid = True

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        values, order = distribution.values.sort()
        below = distribution.renormalized().probs[:, order].cumsum(-1)[:, :-1]
        label_below = two_hot(target, values).cumsum(-1)[:, :-1]
        on_grid = values.diff() * (below.square() - 2 * below * label_below + label_below)
        return on_grid.sum(-1) + beyond_grid(target.float(), values)
