"""The probabilities of the grid's tokens, as the model gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head


class GridHead(Head):
    """p(str(y) | x) for each y of the grid, without any parameter (the paper's eq. 5 and 10)."""

    reads_grid: ClassVar[bool] = True

    values: torch.Tensor

    def __init__(self, values: Sequence[float]):
        super().__init__()
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> GridDistribution:
        return final.distribution(grid_token_ids, self.values)
