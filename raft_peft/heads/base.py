"""What a head is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from raft_peft.distribution import GridDistribution
from raft_peft.forward.final_position import FinalPosition


@dataclass(frozen=True)
class HeadSetup:
    """What a head may need to know when it is made.

    Attributes:
        values: the numbers of the grid, in the unit of the labels.
        grid_token_ids: the tokens of each of them, or None where no row was seen yet.
        vocab_size: length of the model's logits.
        hidden_size: length of its output embeddings.
    """

    values: tuple[float, ...]
    grid_token_ids: tuple[tuple[int, ...], ...] | None
    vocab_size: int
    hidden_size: int

    @property
    def middle(self) -> float:
        """The middle of the grid's range, where a number that is not yet known may start."""
        low, high = self._range
        return (low + high) / 2

    @property
    def span(self) -> float:
        """The length of the grid's range."""
        low, high = self._range
        return high - low

    @property
    def _range(self) -> tuple[float, float]:
        """The ends of the grid; of one number alone, that and 0, between which its expectation lies."""
        values = self.values if len(self.values) > 1 else (0.0, *self.values)
        return min(values), max(values)


class Head(nn.Module, ABC):
    """Reads a prediction off the final position.

    Its parameters are float32 whatever the model's dtype. They live in the model, train with it, and are saved beside
    the adapter.

    Attributes:
        reads_grid: whether `forward` reads the probabilities of the grid's numbers. Where some are several tokens, the
            model then reads these, too.
        reads_hidden_states: whether `forward` needs the output embeddings of all positions.
        sums_to_one: whether its distribution holds all probability by construction, so that its mass says nothing.
        origin: the settings and the grid that its parameters belong to; None for a head of the user's own.
        is_new: whether its parameters are those that it was made with, neither trained nor loaded. Those of a head of
            the user's own are the user's.
    """

    reads_grid: ClassVar[bool] = False
    reads_hidden_states: ClassVar[bool] = False
    sums_to_one: ClassVar[bool] = False

    origin: Mapping[str, Any] | None = None
    is_new: bool = False

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Head:
        """Move with the model, but keep the precision where the model is cast to another (`bf16_full_eval`)."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(keep_dtype, recurse)

    @abstractmethod
    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> GridDistribution | torch.Tensor:
        """A distribution over numbers, or one number a row in the unit of the labels, of shape (batch,).

        Args:
            final: what the model says at the final position.
            grid_token_ids: the token of each grid value, of shape (batch, grid), or where some are several tokens,
                all of them, of shape (batch, grid, depth). `final.distribution` takes both, where `reads_grid` is set.
        """


def parameter(*shape: int, fill: float = 0.0, std: float = 0.0) -> nn.Parameter:
    """A float32 parameter, constant or drawn from a normal distribution around the constant."""
    return nn.Parameter(torch.full(shape, fill, dtype=torch.float32) + std * torch.randn(shape, dtype=torch.float32))
