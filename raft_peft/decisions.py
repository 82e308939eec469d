"""Decision rules: from a distribution over the grid to one number."""

from __future__ import annotations

import torch

from raft_peft.distribution import GridDistribution


def mean(distribution: GridDistribution, *, renormalize: bool = False) -> torch.Tensor:
    """The expectation sum over y of y p(str(y) | x), the Bayes rule of squared error (RAIL, the paper's eq. 5).

    Args:
        distribution: probabilities over the whole vocabulary.
        renormalize: divide them by their sum over the grid first (the paper's Table 16).

    Returns:
        One number a row in the unit of the labels, float32, of shape (batch,).
    """
    if renormalize:
        distribution = distribution.renormalized()
    return (distribution.probs * distribution.values).sum(-1)
