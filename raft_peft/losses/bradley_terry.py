"""The loss of a preference between two prompts, by the difference of their predictions."""

from __future__ import annotations

import math

import torch


class BradleyTerry:
    """-log sigmoid(beta (y_hat(chosen) - y_hat(rejected) - margin)) for each pair (Bradley and Terry, 1952).

    The probability that the chosen one is preferred has the log-odds beta times the difference of the two predictions.

    >>> BradleyTerry(beta=2.0)(torch.tensor([3.0]), torch.tensor([2.5]), torch.tensor([0.5]))
    tensor([0.6931])

    Args:
        beta: log-odds for a difference of 1, in 1 / the unit of the labels.

    Raises:
        ValueError: beta is not a number above 0.
    """

    def __init__(self, beta: float = 1.0):
        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(
                f"beta={beta} is the log-odds of a preference for a difference of 1 on the grid. Use a number above 0."
            )
        self.beta = beta

    def __call__(
        self, chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Predictions to losses in nats, float32, all of shape (pairs,).

        Args:
            chosen: the predictions of the preferred prompts, in the unit of the labels.
            rejected: those of the others.
            margin: the difference at which the preference is even, in the same unit.
        """
        difference = chosen.float() - rejected.float() - margin
        return -torch.nn.functional.logsigmoid(self.beta * difference)
