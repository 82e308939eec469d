"""Unbiased, less noisy than without a baseline, and exact where no gradient is asked for."""

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.losses import SampledSquaredError

# Five tokens, of which three are the grid 1, 2, 4; 30 % of the probability is off it.
P = np.array([0.1, 0.2, 0.15, 0.4, 0.15])
IDS = [3, 0, 4]
VALUES = [1.0, 2.0, 4.0]
TARGET = 2.5
# (2.5 - y)^2 of each token; off the grid y counts as 0
ERRORS = np.array([0.25, 6.25, 6.25, 2.25, 2.25])
DRAWS = 8_000


def exact(renormalize):
    """Eq. 13 and its gradient with respect to the logits, p_k (e_k - loss) for the tokens that are drawn from."""
    p = np.where(np.isin(np.arange(5), IDS), P, 0) / P[IDS].sum() if renormalize else P
    loss = p @ ERRORS
    return loss, p * (ERRORS - loss)


def draw(num_samples, *, renormalize=False, target=TARGET, draws=DRAWS):
    """The loss and the gradient of many rows that are alike, each with logits and draws of its own."""
    torch.manual_seed(0)
    logits = torch.tensor(P, dtype=torch.float32).log().repeat(draws, 1).requires_grad_()
    distribution = GridDistribution.from_logits(logits, torch.tensor([IDS]).expand(draws, 3), VALUES)
    loss = SampledSquaredError(num_samples, renormalize=renormalize)(distribution, torch.full((draws,), target))
    loss.sum().backward()
    return loss.detach().double().numpy(), logits.grad.double().numpy()


def standard_error(sample):
    return sample.std(0) / np.sqrt(len(sample))


def test_the_exact_values_that_the_draws_are_held_against():
    # 0.1 x 0.25 + 0.4 x 2.25 + 0.15 x 2.25 = 1.2625 on the grid; with 0.35 x 6.25 off it 3.45, and given the grid,
    # divided by 0.65, 1.9423
    assert exact(renormalize=False)[0] == pytest.approx(3.45)
    assert exact(renormalize=True)[0] == pytest.approx(1.2625 / 0.65)
    for renormalize in (False, True):
        logits = torch.tensor(P).log().requires_grad_()
        p = logits.softmax(-1)
        errors = p * torch.tensor(ERRORS)
        loss = errors[IDS].sum() / p[IDS].sum() if renormalize else errors.sum()
        loss.backward()
        value, gradient = exact(renormalize)
        assert loss.item() == pytest.approx(value)
        np.testing.assert_allclose(logits.grad, gradient, atol=1e-12)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("num_samples", [2, 5])
def test_value_and_gradient_are_unbiased(num_samples, renormalize):
    losses, gradients = draw(num_samples, renormalize=renormalize)
    value, gradient = exact(renormalize)
    assert abs(losses.mean() - value) < 4 * standard_error(losses)
    assert (np.abs(gradients.mean(0) - gradient) < 4 * standard_error(gradients) + 1e-6).all()
    # The tolerance is small beside the gradient: a baseline that counts the draw itself would shrink it to one half
    # with two samples, to four fifths with five.
    assert 4 * np.linalg.norm(standard_error(gradients)) < 0.1 * np.linalg.norm(gradient)


def test_every_value_is_a_mean_of_errors_drawn_with_replacement():
    losses, _ = draw(2)
    # Errors 6.25, 0.25, 2.25 with 0.35, 0.1, 0.55, hence means of two of them.
    expected = {6.25: 0.35**2, 3.25: 0.07, 0.25: 0.01, 4.25: 0.385, 1.25: 0.11, 2.25: 0.55**2}
    assert sum(expected.values()) == pytest.approx(1)
    assert set(losses.round(4)) == set(expected)
    for value, p in expected.items():
        share = np.isclose(losses, value, atol=1e-4).mean()
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / DRAWS)


# The further off, the less the errors differ beside their size: 2.25, 0.25, 2.25; 81, 64, 36; 361, 324, 256.
@pytest.mark.parametrize(("target", "left"), [(2.5, 0.5), (10.0, 0.2), (20.0, 0.05)])
def test_the_baseline_takes_off_variance(target, left):
    num_samples = 8
    _, gradients = draw(num_samples, renormalize=True, target=target)
    p, errors = P[IDS] / P[IDS].sum(), (target - np.array(VALUES)) ** 2
    drawn = np.random.default_rng(0).choice(3, size=(DRAWS, num_samples), p=p)
    without = (errors[drawn][..., None] * (np.eye(3)[drawn] - p)).mean(1)
    expected = p * (errors - p @ errors)
    for sample in (gradients[:, IDS], without):
        assert (np.abs(sample.mean(0) - expected) < 4 * standard_error(sample)).all()
    assert gradients.var(0).sum() < left * without.var(0).sum()


def test_draws_off_the_grid_count_as_0():
    # e^-40 on the grid: all draws are off it, and cost 7^2.
    distribution = GridDistribution(torch.full((100, 2), -40.0), torch.tensor([1.0, 2.0]))
    assert SampledSquaredError(4)(distribution, torch.full((100,), 7.0)).tolist() == [49] * 100
    # Given the grid there is nothing off it: one half each of 36 and 25.
    loss = SampledSquaredError(4, renormalize=True)(distribution, torch.full((100,), 7.0))
    assert set(loss.tolist()) <= {25 + 11 * share / 4 for share in range(5)}


def test_draws_of_one_outcome_give_no_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    distribution = GridDistribution.from_logits(logits, torch.tensor([[0, 1]]), [1, 3])
    loss = SampledSquaredError(8)(distribution, torch.tensor([2.5]))
    loss.sum().backward()
    assert loss.item() == 2.25
    assert logits.grad.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_exact(without, renormalize):
    logits = torch.tensor(np.array([P]), dtype=torch.float32).log()
    with without():
        distribution = GridDistribution.from_logits(logits, torch.tensor([IDS]), VALUES)
        loss = SampledSquaredError(2, renormalize=renormalize)(distribution, torch.tensor([TARGET]))
    assert loss.item() == pytest.approx(exact(renormalize)[0], rel=1e-6)


@pytest.mark.parametrize("num_samples", [1, 0, -3])
def test_too_few_samples_for_a_baseline(num_samples):
    with pytest.raises(ValueError, match=rf"num_samples={num_samples} leaves no other draw.*Use 2 or more"):
        SampledSquaredError(num_samples)
