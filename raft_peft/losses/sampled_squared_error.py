"""The expected squared error, estimated from draws."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss
from raft_peft.losses.expected_squared_error import ExpectedSquaredError


class SampledSquaredError(DistributionLoss):
    """The expected squared error from draws y_i ~ p(. | x), with a score-function gradient (the paper's eq. 14).

    The value is the mean of (y* - y_i)^2. The gradient is the mean of ((y* - y_i)^2 - b_i) grad log p(y_i | x), where
    the baseline b_i, the mean loss of the other draws, takes off variance and adds no bias. A draw off the grid costs
    0, as in eq. 13. Without gradients, in evaluation, it is eq. 13 itself.

    Args:
        num_samples: draws for each example, 2 or more.
        renormalize: draw from the probabilities divided by their sum over the grid.
    """

    def __init__(self, num_samples: int, *, renormalize: bool = False):
        if num_samples < 2:
            raise ValueError(f"num_samples={num_samples} leaves no other draw for the baseline. Use 2 or more.")
        self.num_samples = num_samples
        self.exact = ExpectedSquaredError(renormalize=renormalize)

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        if not torch.is_grad_enabled():
            return self.exact(distribution, target)
        if self.exact.renormalize:
            distribution = distribution.renormalized()
        off_grid = distribution.mass_off_grid.clamp(min=torch.finfo(torch.float32).tiny).log().unsqueeze(-1)
        log_probs = torch.cat([distribution.log_probs, off_grid], dim=-1)
        errors = (target.float().unsqueeze(-1) - distribution.values).square()
        errors = torch.cat([errors, torch.zeros_like(errors[:, :1])], dim=-1)

        drawn = log_probs.detach().exp().multinomial(self.num_samples, replacement=True)
        losses = errors.gather(-1, drawn)
        baseline = (losses.sum(-1, keepdim=True) - losses) / (self.num_samples - 1)
        score = ((losses - baseline) * log_probs.gather(-1, drawn)).mean(-1)
        return losses.mean(-1) + (score - score.detach())
