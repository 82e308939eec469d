import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.losses import ExpectedSquaredError

# One row, four tokens with probabilities 0.1, 0.2, 0.3 and 0.4; the grid 10, 20, 30 on the first three.
LOGITS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
VALUES = [10, 20, 30]
IDS = torch.tensor([[0, 1, 2]])
TARGET = torch.tensor([20.0])


def loss_and_gradient(logits, *, renormalize):
    logits = logits.clone().requires_grad_()
    loss = ExpectedSquaredError(renormalize=renormalize)(GridDistribution.from_logits(logits, IDS, VALUES), TARGET)
    loss.sum().backward()
    return loss.detach(), logits.grad


def test_by_hand():
    # errors 100, 0, 100: 0.1 x 100 + 0.3 x 100 = 40, and what is off the grid costs nothing
    loss, gradient = loss_and_gradient(LOGITS, renormalize=False)
    torch.testing.assert_close(loss, torch.tensor([40.0]))
    # d/dz_k of sum p_j e_j is p_k (e_k - 40), with e = 0 off the grid: 0.1 x 60, 0.2 x -40, 0.3 x 60, 0.4 x -40
    torch.testing.assert_close(gradient, torch.tensor([[6.0, -8.0, 18.0, -16.0]]))


def test_renormalised_by_hand():
    # 1/6, 1/3, 1/2 given the grid: 100 / 6 + 100 / 2 = 66.67
    loss, gradient = loss_and_gradient(LOGITS, renormalize=True)
    torch.testing.assert_close(loss, torch.tensor([200 / 3]))
    # 1/6 x (100 - 200/3), 1/3 x (0 - 200/3), 1/2 x (100 - 200/3)
    torch.testing.assert_close(gradient, torch.tensor([[50 / 9, -200 / 9, 50 / 3, 0.0]]))


def test_over_the_vocabulary_it_falls_when_probability_leaves_the_grid():
    leaving = LOGITS + torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    assert loss_and_gradient(leaving, renormalize=False)[0] < 40 / 10
    torch.testing.assert_close(loss_and_gradient(leaving, renormalize=True)[0], torch.tensor([200 / 3]))


def test_it_is_the_squared_error_of_the_mean_and_the_variance():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([10.0, 14.0, 22.5, 30.0, 90.0])
    loss = ExpectedSquaredError(renormalize=True)(
        GridDistribution.from_logits(logits, IDS.expand(5, 3), VALUES), target
    )
    p = logits.double().softmax(-1).numpy()
    mean = p @ VALUES
    variance = p @ [100, 400, 900] - mean**2
    assert loss.tolist() == pytest.approx((target.numpy() - mean) ** 2 + variance, rel=1e-5)


@pytest.mark.parametrize("renormalize", [False, True])
def test_one_hot(renormalize):
    distribution = GridDistribution(torch.tensor([[-torch.inf, 0.0]]).expand(2, 2), torch.tensor([1.0, 4.0]))
    loss = ExpectedSquaredError(renormalize=renormalize)(distribution, torch.tensor([4.0, 2.0]))
    assert loss.tolist() == [0, 4]
