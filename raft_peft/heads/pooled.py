"""A linear function of the pooled output embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch

from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup, parameter


class PooledHead(Head):
    """b + w . pool of the output embeddings over the real tokens (the paper's Table 2).

    b starts in the grid's middle, w at small random numbers.

    Args:
        setup: the grid and the size of the embeddings.
        pooling: mean, min or max, of each dimension over the tokens.
    """

    reads_hidden_states: ClassVar[bool] = True

    def __init__(self, setup: HeadSetup, *, pooling: str):
        super().__init__()
        self.pooling = pooling
        self.weight = parameter(setup.hidden_size, std=0.02)
        self.bias = parameter(1, fill=setup.middle)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> torch.Tensor:
        if final.hidden_states is None:
            raise ValueError(
                "PooledHead reads the output embeddings: read the final position with hidden_states=True."
            )
        states = final.hidden_states.float()
        real = final.attention_mask.bool().unsqueeze(-1)
        if self.pooling == "mean":
            pooled = states.masked_fill(~real, 0).sum(1) / real.sum(1)
        elif self.pooling == "min":
            pooled = states.masked_fill(~real, torch.inf).amin(1)
        else:
            pooled = states.masked_fill(~real, -torch.inf).amax(1)
        return pooled @ self.weight + self.bias
