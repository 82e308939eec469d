"""The loss of a preference, against numbers worked out by hand."""

import math

import pytest
import torch

from raft_peft.losses import BradleyTerry


def test_is_the_negative_log_of_the_probability_of_the_preference():
    loss = BradleyTerry(beta=2.0)
    found = loss(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 2.5, 1.5]), torch.tensor([0.0, 0.0, 0.5]))
    by_hand = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(3)), math.log(2)]
    torch.testing.assert_close(found, torch.tensor(by_hand))


def test_is_finite_however_far_apart_they_are():
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = BradleyTerry()(chosen, torch.zeros(2))
    losses.sum().backward()
    assert losses.tolist() == [1e4, 0.0]
    assert chosen.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("beta", [0, -1, math.inf, math.nan])
def test_beta_is_above_0(beta):
    with pytest.raises(ValueError, match="above 0"):
        BradleyTerry(beta)
