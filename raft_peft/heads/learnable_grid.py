"""Learnable RAFT: the numbers that the tokens stand for are learned."""

from __future__ import annotations

from typing import ClassVar

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup, parameter


class LearnableGridHead(Head):
    """sum of w_y p(str(y) | x), with w_y starting at y (the paper's eq. 12).

    Args:
        setup: the grid and the size of the vocabulary.
        whole_vocabulary: learn a weight for every token, 0 at first off the grid, instead of for the grid's alone.
    """

    reads_grid: ClassVar[bool] = True

    def __init__(self, setup: HeadSetup, *, whole_vocabulary: bool = False):
        super().__init__()
        self.whole_vocabulary = whole_vocabulary
        values = torch.tensor(setup.values, dtype=torch.float32)
        if whole_vocabulary:
            if setup.grid_token_ids is None:
                raise ValueError(
                    "Weights of the whole vocabulary start at the grid's tokens, which are not known before a row is "
                    "seen. Pass a train_dataset or eval_dataset."
                )
            if any(len(ids) > 1 for ids in setup.grid_token_ids):
                raise ValueError(
                    "Weights of the whole vocabulary read the next token alone, and some numbers of the grid are "
                    "several tokens. Set `weights='grid'`, give the numbers tokens of their own with "
                    "`add_number_tokens`, or take a grid of single tokens."
                )
            self.weight = parameter(setup.vocab_size)
            with torch.no_grad():
                self.weight[[ids[0] for ids in setup.grid_token_ids]] = values
        else:
            self.weight = parameter(len(values))
            with torch.no_grad():
                self.weight.copy_(values)

    @property
    def values(self) -> torch.Tensor | None:
        """The learned numbers of the grid; None where every token has one."""
        return None if self.whole_vocabulary else self.weight

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> GridDistribution | torch.Tensor:
        if self.whole_vocabulary:
            return final.logits.float().softmax(-1) @ self.weight
        # A view, since a wrapper for distributed training does not see that a bare parameter is used.
        return final.distribution(grid_token_ids, self.weight.view(-1))
