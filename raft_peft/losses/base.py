"""What a loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch

from raft_peft.distribution import GridDistribution


class Loss(Protocol):
    """A loss of the predicted number, for each example."""

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor, /) -> torch.Tensor:
        """Predictions and targets in the unit of the labels, of shape (batch,), to losses of shape (batch,)."""


class DistributionLoss(ABC):
    """A loss of the whole distribution over the grid, for each example.

    Where a label is several ratings, the loss is its mean over them.

    Attributes:
        labels_within_grid: whether a label outside the range of the grid is an error.
    """

    labels_within_grid: bool = False

    @abstractmethod
    def __call__(self, distribution: GridDistribution, target: torch.Tensor) -> torch.Tensor:
        """A distribution of shape (batch, grid) and targets of shape (batch,) to losses of shape (batch,)."""
