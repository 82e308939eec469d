"""A small network on the logits."""

from __future__ import annotations

import torch

from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup, parameter


class LogitsMLPHead(Head):
    """b + v . sigmoid(W logits + c), two layers on the final position's logits (the paper's eq. 11).

    b starts in the grid's middle, W and v at small random numbers.

    Args:
        setup: the grid and the size of the vocabulary.
        width: of the hidden layer.
    """

    def __init__(self, setup: HeadSetup, *, width: int):
        super().__init__()
        self.inner_weight = parameter(width, setup.vocab_size, std=0.1 * setup.vocab_size**-0.5)
        self.inner_bias = parameter(width)
        self.outer_weight = parameter(width, std=width**-0.5)
        self.bias = parameter(1, fill=setup.middle)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(final.logits.float() @ self.inner_weight.T + self.inner_bias)
        return hidden @ self.outer_weight + self.bias
