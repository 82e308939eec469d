"""The temperature at which the distributions of held-out rows are as sure as they are right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from raft_peft.distribution import GridDistribution

# The range in which the temperature is sought.
_COLDEST, _HOTTEST = 0.02, 50.0


def fitted_temperature(distribution: GridDistribution, label_shares: torch.Tensor) -> float:
    """The temperature under which the labels are the likeliest (Guo et al., ICML 2017).

    Args:
        distribution: of the rows, over two numbers or more.
        label_shares: the labels as shares of its numbers, of shape (rows, grid): a label between two of them counts as
            both, each by its nearness, one beyond the grid as its end, and of several ratings each by itself.
    """
    from scipy.optimize import minimize_scalar

    # A number that is ruled out stays so at any temperature. Its -inf would give NaN times a share of 0.
    log_probs = distribution.log_probs.double().cpu().clamp(min=torch.finfo(torch.float32).min)
    shares = label_shares.double().cpu()

    def loss(log_temperature: float) -> float:
        tempered = (log_probs / math.exp(log_temperature)).log_softmax(-1)
        return -(shares * tempered).sum(-1).mean().item()

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def refuse_one_number(texts: Sequence[str]) -> None:
    """Raise a ValueError where a grid holds one number, which is sure at any temperature.

    Args:
        texts: of the numbers of the grid.
    """
    if len(texts) == 1:
        raise ValueError(
            f"Renormalized over the grid, its one number {texts[0]} has the probability 1 at any temperature. Leave "
            "`calibrated` off; `predict(prompts, interval=0.9)` gives intervals."
        )
