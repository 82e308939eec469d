"""Losses: tensors in, one value an example out. One loss a file.

A loss is any callable `(prediction, target) -> loss`, all of shape (batch,) and not reduced, such as
`torch.nn.HuberLoss(reduction="none")`. One that reads the whole distribution instead of the prediction says so by
deriving from `DistributionLoss`.
"""

from raft_peft.losses.base import DistributionLoss, Loss
from raft_peft.losses.cross_entropy import cross_entropy
from raft_peft.losses.expected_squared_error import ExpectedSquaredError
from raft_peft.losses.log_loss import LogLoss
from raft_peft.losses.sampled_squared_error import SampledSquaredError
from raft_peft.losses.squared_error import squared_error

__all__ = [
    "DistributionLoss",
    "ExpectedSquaredError",
    "LogLoss",
    "Loss",
    "SampledSquaredError",
    "cross_entropy",
    "squared_error",
]
