"""Losses: tensors in, one value an example out. One loss a file.

A loss is any callable `(prediction, target) -> loss`, all of shape (batch,) and not reduced, such as
`torch.nn.HuberLoss(reduction="none")`. One that reads the whole distribution instead of the prediction says so by
deriving from `DistributionLoss`. `BradleyTerry` is of two prompts, of which one is preferred.
"""

from raft_peft.losses.base import DistributionLoss, Loss
from raft_peft.losses.bradley_terry import BradleyTerry
from raft_peft.losses.cross_entropy import cross_entropy
from raft_peft.losses.crps import CRPS
from raft_peft.losses.expected_squared_error import ExpectedSquaredError
from raft_peft.losses.grid_mass import GridMass
from raft_peft.losses.log_loss import LogLoss
from raft_peft.losses.loss_sum import LossSum
from raft_peft.losses.ranked_probability_score import RankedProbabilityScore
from raft_peft.losses.sampled_squared_error import SampledSquaredError
from raft_peft.losses.soft_cross_entropy import SoftCrossEntropy
from raft_peft.losses.squared_error import squared_error
from raft_peft.losses.wasserstein import WassersteinDistance

__all__ = [
    "CRPS",
    "BradleyTerry",
    "DistributionLoss",
    "ExpectedSquaredError",
    "GridMass",
    "LogLoss",
    "Loss",
    "LossSum",
    "RankedProbabilityScore",
    "SampledSquaredError",
    "SoftCrossEntropy",
    "WassersteinDistance",
    "cross_entropy",
    "squared_error",
]
