"""A linear function of the probabilities of the vocabulary."""

from __future__ import annotations

import torch

from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup, parameter


class ProbabilityProjectionHead(Head):
    """b + w . p, with p over the whole vocabulary (the paper's Table 2); b starts in the grid's middle,
    w at random numbers, small beside the grid's range."""

    def __init__(self, setup: HeadSetup):
        super().__init__()
        self.weight = parameter(setup.vocab_size, std=setup.span / 8)
        self.bias = parameter(1, fill=setup.middle)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> torch.Tensor:
        return final.logits.float().softmax(-1) @ self.weight + self.bias
