"""Two values: the upper one, and everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head


class UpperValueHead(Head):
    """p of the upper grid value; whatever else the model says counts as the lower one (the paper's Table 15).

    The distribution is over two values, the least and the greatest of the grid in this order, and sums to one.
    """

    reads_grid: ClassVar[bool] = True
    sums_to_one: ClassVar[bool] = True

    values: torch.Tensor

    def __init__(self, values: Sequence[float]):
        super().__init__()
        ends = torch.tensor([min(values), max(values)], dtype=torch.float32)
        self.register_buffer("values", ends, persistent=False)
        self.upper = max(range(len(values)), key=values.__getitem__)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> GridDistribution:
        if final.trie is not None:
            # Short of 1, where the rest would be 0 and its logarithm without a gradient.
            upper = final.trie.log_probs[:, self.upper, None].clamp(max=-torch.finfo(torch.float32).eps)
            return GridDistribution(torch.cat([torch.log(-torch.expm1(upper)), upper], dim=-1), self.values)
        logits = final.logits.float()
        upper_ids = grid_token_ids[:, self.upper, None]
        total = logits.logsumexp(-1, keepdim=True)
        # The rest of the vocabulary by itself, since 1 - p would lose its digits where p is close to 1.
        rest = logits.scatter(-1, upper_ids, -torch.inf).logsumexp(-1, keepdim=True)
        log_probs = torch.cat([rest - total, logits.gather(-1, upper_ids) - total], dim=-1)
        return GridDistribution(log_probs, self.values)
