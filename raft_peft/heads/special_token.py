"""The logit of one token as the prediction."""

from __future__ import annotations

import torch

from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup, parameter


class SpecialTokenHead(Head):
    """b + the logit of a special token at the final position (the paper's Table 2); b starts in the grid's middle.

    Args:
        setup: the grid.
        token_id: the special token.
    """

    def __init__(self, setup: HeadSetup, token_id: int):
        super().__init__()
        self.token_id = token_id
        self.bias = parameter(1, fill=setup.middle)

    def forward(self, final: FinalPosition, grid_token_ids: torch.Tensor) -> torch.Tensor:
        return final.logits[:, self.token_id].float() + self.bias
