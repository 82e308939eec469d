import math

import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.losses import LogLoss

VALUES = torch.tensor([1.0, 5.0])


def distribution_of(*upper):
    p = torch.tensor(upper, dtype=torch.float64)
    return GridDistribution(torch.stack([1 - p, p], dim=-1).log().float(), VALUES)


def test_by_hand():
    # Between 1 and 5 the targets 1, 2, 4 and 5 are 0, 1/4, 3/4 and 1.
    loss = LogLoss()(distribution_of(0.8, 0.8, 0.8, 0.8), torch.tensor([1.0, 2.0, 4.0, 5.0]))
    low, high = -math.log(0.2), -math.log(0.8)
    expected = [low, 0.25 * high + 0.75 * low, 0.75 * high + 0.25 * low, high]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_falling_pair_of_values():
    # The order says which is the lower: here p is that of 1, and 2 is 3/4 of the way down from 5.
    falling = GridDistribution(torch.tensor([[0.2, 0.8]]).log(), VALUES.flip(0))
    loss = LogLoss()(falling, torch.tensor([2.0]))
    assert loss.item() == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2), rel=1e-6)


def test_the_gradient_is_p_minus_t():
    logits = torch.tensor([[0.0, math.log(4)], [0.0, math.log(4)]], requires_grad=True)
    distribution = GridDistribution(logits.log_softmax(-1), VALUES)
    LogLoss()(distribution, torch.tensor([2.0, 4.2])).sum().backward()
    # p = 4/5 in both rows; t = 0.25 and 0.8
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.55, 0.55], [0.0, 0.0]]), atol=1e-6, rtol=1e-6)


def test_the_least_loss_is_the_entropy_of_the_scaled_target():
    # t = 0.3, at p = 0.3; every other p costs more
    others = [0.05, 0.2, 0.29, 0.31, 0.5, 0.95]
    loss = LogLoss()(distribution_of(0.3, *others), torch.full((7,), 2.2))
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert loss[0].item() == pytest.approx(entropy, rel=1e-6)
    assert (loss[1:] > loss[0]).all()


def test_certainty_is_free_where_it_is_right_and_dear_where_it_is_wrong():
    log_probs = torch.tensor([[0.0, -50.0], [-50.0, 0.0]])
    for target, expected in ((1.0, [0, 50]), (5.0, [50, 0])):
        loss = LogLoss()(GridDistribution(log_probs, VALUES), torch.full((2,), target))
        assert loss.tolist() == expected
