"""The distribution over the grid that the model holds for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class GridDistribution:
    """Probabilities of the numbers of a grid, for a batch of prompts.

    Attributes:
        log_probs: log p(str(y) | x) in nats, float32, of shape (batch, grid). Normalized over the whole vocabulary,
            so that the probabilities of a row sum to at most one.
        values: the numbers y in the unit of the labels, float32, of shape (grid,).
    """

    log_probs: torch.Tensor
    values: torch.Tensor

    @classmethod
    def from_logits(
        cls, logits: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor | Sequence[float]
    ) -> GridDistribution:
        """Read the grid off the logits of the next token, in float32 whatever their dtype.

        Args:
            logits: logits over the whole vocabulary, of shape (batch, vocabulary).
            token_ids: the token of each grid value, of shape (batch, grid), since it may depend on the prompt.
            values: the grid's numbers, of shape (grid,).
        """
        log_probs = log_probs_of(logits, token_ids)
        return cls(log_probs, torch.as_tensor(values, dtype=torch.float32, device=logits.device))

    def __len__(self) -> int:
        return self.log_probs.shape[0]

    @property
    def probs(self) -> torch.Tensor:
        """p(str(y) | x), of shape (batch, grid)."""
        return self.log_probs.exp()

    @property
    def mass(self) -> torch.Tensor:
        """The probability that the model answers with a number of the grid, of shape (batch,)."""
        return self.probs.sum(-1)

    @property
    def mass_off_grid(self) -> torch.Tensor:
        """The probability that the model answers with anything else, of shape (batch,)."""
        return (1 - self.mass).clamp(min=0)

    @property
    def entropy(self) -> torch.Tensor:
        """Entropy in nats of the distribution renormalized over the grid, of shape (batch,); 0 to log(grid)."""
        log_probs = self.renormalized().log_probs
        # entr(p) = -p log p with the limit 0 at p = 0
        return torch.special.entr(log_probs.exp()).sum(-1)

    def tempered(self, temperature: float) -> GridDistribution:
        """The distribution on the grid, p^(1 / temperature) divided by its sum: flatter above 1, sharper below.

        Raises:
            ValueError: the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"A temperature is positive, got {temperature}.")
        return GridDistribution((self.log_probs / temperature).log_softmax(-1), self.values)

    def renormalized(self) -> GridDistribution:
        """The distribution given that the answer is on the grid: p divided by its sum (the paper's Table 16)."""
        return GridDistribution(self.log_probs.log_softmax(-1), self.values)

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation in the unit of the labels, renormalized over the grid, of shape (batch,)."""
        probs, values = self.renormalized().probs.double(), self.values.double()
        # About the mean, since a difference of large squares would lose all digits.
        deviations = values - (probs * values).sum(-1, keepdim=True)
        return (probs * deviations.square()).sum(-1).sqrt().float()

    def quantile(self, level: float) -> torch.Tensor:
        """The smallest grid value whose cumulative probability on the grid reaches the level, of shape (batch,).

        Args:
            level: between 0 and 1.

        Returns:
            Numbers of the grid; NaN where the distribution is.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"A quantile's level is between 0 and 1, got {level}.")
        values, order = self.values.sort()
        cumulative = self.renormalized().probs[:, order].double().cumsum(-1)
        # The roundings of float32 probabilities below the level, so that 0.3 + 0.2 reaches 0.5.
        reached = cumulative >= level * (1 - 1e-6)
        reached[:, -1] = True
        # A model that has diverged gives NaN, which must not look like a number.
        return values[reached.int().argmax(-1)].masked_fill(self.log_probs.isnan().any(-1), torch.nan)

    def interval(self, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The central interval: its ends are the quantiles at (1 - level) / 2 and (1 + level) / 2.

        It holds at least `level` of the probability on the grid. How often it holds the label is another question,
        which `RegressionPredictor.predict(..., interval=level)` answers from held-out rows.

        Args:
            level: between 0 and 1.

        Returns:
            The lower and the upper ends, numbers of the grid, each of shape (batch,).

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"An interval's level is between 0 and 1, got {level}.")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def prob_at_least(self, threshold: float) -> torch.Tensor:
        """P(y >= threshold), given that the answer is on the grid, of shape (batch,).

        Args:
            threshold: in the unit of the labels, on the grid or not.

        Raises:
            ValueError: the threshold is NaN.
        """
        if threshold != threshold:
            raise ValueError("The threshold is NaN. Pass a number in the unit of the labels, such as 4.")
        probs = self.renormalized().probs
        at_least = self.values >= torch.tensor(threshold, dtype=self.values.dtype, device=self.values.device)
        return (probs * at_least).sum(-1)


def log_probs_of(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log p of tokens in nats, float32 whatever the logits, of the shape of `token_ids`.

    Args:
        logits: over the whole vocabulary, of shape (..., vocabulary).
        token_ids: of shape (..., tokens).
    """
    return _LogProbsOfTokens.apply(logits.float(), token_ids)


class _LogProbsOfTokens(torch.autograd.Function):
    """log p of a few tokens, whose backward pass makes one tensor over the vocabulary where autograd makes five."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        # Not log_softmax, which sums a row one by one in float32: over a large vocabulary it is off by 1e-5.
        log_sum = logits.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logits, token_ids, log_sum)
        return logits.gather(-1, token_ids) - log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (logits, token_ids, log_sum) = gradients, ctx.saved_tensors
        of_logits = (logits - log_sum).exp_().mul_(-gradient.sum(-1, keepdim=True))
        return of_logits.scatter_add_(-1, token_ids, gradient), None
