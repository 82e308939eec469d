"""The expected squared error estimated from draws, the sampled loss of minimum Bayes risk training (MBR)."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.losses.base import DistributionLoss


class SampledSquaredError(DistributionLoss):
    """E[(y* - y)^2] over y ~ p(. | x), estimated from draws (the paper's Definition 2 and eq. 13).

    The value is the mean of (y* - y_i)^2. The gradient is that of the score function, the mean of
    ((y* - y_i)^2 - b_i) grad log p(y_i | x), where the baseline b_i, the mean loss of the other draws, takes off
    variance and adds no bias. A draw off the grid counts as the number 0, as everywhere over the whole vocabulary, and
    costs y*^2. Without gradients, in evaluation, it is the expectation itself.

    Args:
        num_samples: draws for each example, 2 or more.
        renormalize: draw from the probabilities divided by their sum over the grid.
    """

    def __init__(self, num_samples: int, *, renormalize: bool = False):
        if num_samples < 2:
            raise ValueError(f"num_samples={num_samples} leaves no other draw for the baseline. Use 2 or more.")
        self.num_samples = num_samples
        self.renormalize = renormalize

    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
        target = target.float().unsqueeze(-1)
        errors = (target - distribution.values).square()
        log_probs = distribution.log_probs
        if self.renormalize:
            log_probs = distribution.renormalized().log_probs
        else:
            off_grid = distribution.mass_off_grid.clamp(min=torch.finfo(torch.float32).tiny).log().unsqueeze(-1)
            log_probs = torch.cat([log_probs, off_grid], dim=-1)
            errors = torch.cat([errors, target.square()], dim=-1)
        if not torch.is_grad_enabled():
            return (log_probs.exp() * errors).sum(-1)

        drawn = log_probs.detach().exp().multinomial(self.num_samples, replacement=True)
        losses = errors.gather(-1, drawn)
        baseline = (losses.sum(-1, keepdim=True) - losses) / (self.num_samples - 1)
        score = ((losses - baseline) * log_probs.gather(-1, drawn)).mean(-1)
        return losses.mean(-1) + (score - score.detach())
