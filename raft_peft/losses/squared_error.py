"""Squared error, the loss of RAFT."""

from __future__ import annotations

import torch


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(y* - y_hat)^2 for each example (the paper's eq. 10, with y_hat the mean of the grid distribution).

    Args:
        prediction: y_hat in the unit of the labels, of shape (batch,).
        target: y*, of shape (batch,).

    Returns:
        The loss of each example in float32, of shape (batch,), not reduced.
    """
    return (target.float() - prediction.float()).square()
