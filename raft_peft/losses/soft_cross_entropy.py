"""The cross-entropy against a label that is a distribution over the grid, a proper loss that also fills the grid."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss
from raft_peft.losses.label_shares import gaussian, two_hot


class SoftCrossEntropy(DistributionLoss):
    """-sum over y of t(y) log p(str(y) | x) in nats, where t shares the label among the numbers of the grid.

    The probabilities are over the whole vocabulary, so the loss also pulls all of it onto the grid. With shares of the
    two neighbours its minimiser is that of the CRPS, and its mean is E[y].

    Args:
        label_smoothing: the standard deviation, in the unit of the labels, of a Gaussian about the label, whose shares
            then take the place of the two neighbours' (HL-Gauss, Imani and White, ICML 2018). The mean is then only
            near to E[y].

    Raises:
        ValueError: the deviation is negative.
    """

    labels_within_grid = True

    def __init__(self, label_smoothing: float = 0.0):
        if not label_smoothing >= 0:
            raise ValueError(f"label_smoothing={label_smoothing} is a standard deviation. Use 0 or more.")
        self.label_smoothing = label_smoothing

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        if self.label_smoothing:
            shares = gaussian(target, distribution.values, self.label_smoothing)
        else:
            shares = two_hot(target, distribution.values)
        # A number without a share costs nothing, also where its log-probability is -inf.
        return -torch.where(shares > 0, shares * distribution.log_probs, 0).sum(-1)
