"""Heads: from what the model says at the final position to a distribution over numbers, or to one number. One head a
file."""

from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads.base import Head, HeadSetup
from raft_peft.heads.grid import GridHead
from raft_peft.heads.learnable_grid import LearnableGridHead
from raft_peft.heads.logits_mlp import LogitsMLPHead
from raft_peft.heads.pooled import PooledHead
from raft_peft.heads.probability_projection import ProbabilityProjectionHead
from raft_peft.heads.special_token import SpecialTokenHead
from raft_peft.heads.upper_value import UpperValueHead

__all__ = [
    "FinalPosition",
    "GridHead",
    "Head",
    "HeadSetup",
    "LearnableGridHead",
    "LogitsMLPHead",
    "PooledHead",
    "ProbabilityProjectionHead",
    "SpecialTokenHead",
    "UpperValueHead",
]
