"""The losses of a distribution: their values by hand and by integration, and the lemma of docs/uncertainty.md."""

import itertools

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.losses import CRPS, GridMass, RankedProbabilityScore, SoftCrossEntropy, WassersteinDistance

GRIDS = {"even": [1.0, 2.0, 3.0, 4.0, 5.0], "uneven": [-4.0, -1.5, 0.0, 0.5, 7.0], "two": [0.0, 10.0]}


def distribution_of(probs, values, dtype=torch.float32):
    return GridDistribution(torch.tensor([probs], dtype=dtype).log(), torch.tensor(values, dtype=dtype))


def some_probs(count, mass=1.0):
    probs = np.random.default_rng(count).random(count)
    return (mass * probs / probs.sum()).tolist()


def crps_by_integration(probs, values, label):
    """The integral of (F(z) - 1[z >= y])^2 by a sum over a fine grid of z."""
    z = np.linspace(min(*values, label) - 1, max(*values, label) + 1, 2_000_001)
    below = np.cumsum([0, *probs])[np.searchsorted(values, z, side="right")]
    return np.trapezoid((below - (z >= label)) ** 2, z)


@pytest.mark.parametrize("values", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("place", [-0.2, 0.0, 0.31, 0.5, 1.0, 1.3])
def test_crps_is_its_integral(values, place):
    label = values[0] + place * (values[-1] - values[0])
    probs = some_probs(len(values))
    found = CRPS()(distribution_of(probs, values), torch.tensor([label]))
    assert found.item() == pytest.approx(crps_by_integration(probs, values, label), rel=1e-4, abs=1e-4)


def test_crps_by_hand():
    # Half on 1 and half on 5 where 3 is true: F is 1/2 over a length of 4, on either side of the truth.
    assert CRPS()(distribution_of([0.5, 0.5], [1.0, 5.0]), torch.tensor([3.0])).item() == pytest.approx(1.0)
    # All on one number is the absolute error.
    assert CRPS()(distribution_of([1.0, 0.0], [1.0, 5.0]), torch.tensor([2.5])).item() == pytest.approx(1.5)


def test_what_is_off_the_grid_does_not_count():
    label = torch.tensor([2.2])
    for loss in (CRPS(), RankedProbabilityScore(), WassersteinDistance()):
        whole = loss(distribution_of(some_probs(5), GRIDS["even"]), label)
        torch.testing.assert_close(loss(distribution_of(some_probs(5, mass=0.1), GRIDS["even"]), label), whole)


def test_soft_cross_entropy_counts_it():
    distribution = distribution_of([0.2, 0.1, 0.05], [1.0, 2.0, 4.0])
    found = SoftCrossEntropy()(distribution, torch.tensor([2.5]))
    assert found.item() == pytest.approx(-(0.75 * np.log(0.1) + 0.25 * np.log(0.05)))


def test_a_number_that_is_ruled_out_costs_nothing_without_a_share():
    found = SoftCrossEntropy()(distribution_of([0.5, 0.0, 0.5], [1.0, 2.0, 4.0]), torch.tensor([4.0]))
    assert found.item() == pytest.approx(np.log(2))


def test_the_cost_of_answers_off_the_grid():
    found = GridMass()(distribution_of([0.2, 0.1, 0.05], [1.0, 2.0, 4.0]), torch.tensor([2.5]))
    assert found.item() == pytest.approx(-np.log(0.35))
    assert GridMass()(distribution_of([0.5, 0.5], [1.0, 2.0]), torch.tensor([1.0])).item() == 0


def test_ranked_probability_score_by_hand():
    # Cumulated 0.2, 0.5, 1 against 0, 1, 1, over two gaps; how far apart the numbers are plays no part.
    for values in ([1.0, 2.0, 3.0], [0.0, 10.0, 11.0]):
        found = RankedProbabilityScore()(distribution_of([0.2, 0.3, 0.5], values), torch.tensor([values[1]]))
        assert found.item() == pytest.approx((0.2**2 + 0.5**2) / 2)


def test_wasserstein_distance_by_hand():
    found = WassersteinDistance()(distribution_of([0.2, 0.3, 0.5], [1.0, 2.0, 4.0]), torch.tensor([2.5]))
    assert found.item() == pytest.approx(0.2 * 1.5 + 0.3 * 0.5 + 0.5 * 1.5)


@pytest.mark.parametrize(
    "loss",
    [CRPS(), RankedProbabilityScore(), SoftCrossEntropy(), SoftCrossEntropy(1.5)],
    ids=["crps", "rps", "soft_ce", "smoothed"],
)
@pytest.mark.parametrize("values", GRIDS.values(), ids=GRIDS)
def test_gradients_are_those_of_differences(loss, values):
    log_probs = torch.tensor([some_probs(len(values), mass=0.9)], dtype=torch.float64).log().requires_grad_()
    label = torch.tensor([values[0] * 0.3 + values[-1] * 0.7])
    numbers = torch.tensor(values)
    torch.autograd.gradcheck(lambda one: loss(GridDistribution(one, numbers), label), log_probs)


def minimizer(loss, values, labels, weights):
    """The distribution on the grid whose mean loss over weighted labels is least, found by descent on its logits."""
    logits = torch.zeros(1, len(values), dtype=torch.float64, requires_grad=True)
    numbers, labels, weights = torch.tensor(values), torch.tensor(labels), torch.tensor(weights)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def mean_loss():
        optimizer.zero_grad()
        distribution = GridDistribution(logits.log_softmax(-1).expand(len(labels), -1), numbers)
        value = (loss(distribution, labels) * weights).sum()
        value.backward()
        return value

    optimizer.step(mean_loss)
    return logits.detach().softmax(-1)[0].numpy()


@pytest.mark.parametrize("loss", [CRPS(), SoftCrossEntropy()], ids=["crps", "soft_ce"])
@pytest.mark.parametrize("values", GRIDS.values(), ids=GRIDS)
def test_the_minimizer_is_the_mean_of_the_cdf_over_each_gap_and_keeps_the_mean(loss, values):
    random = np.random.default_rng(0)
    labels = random.uniform(values[0], values[-1], size=6).astype(np.float32)
    weights = random.dirichlet(np.ones(6)).astype(np.float32)
    found = minimizer(loss, values, labels, weights)

    z = [np.linspace(low, high, 20_001) for low, high in itertools.pairwise(values)]
    below = [sum(w * (gap >= y).mean() for y, w in zip(labels, weights, strict=True)) for gap in z]
    np.testing.assert_allclose(np.cumsum(found)[:-1], below, atol=2e-3)
    assert found @ values == pytest.approx(labels @ weights, abs=2e-3 * (values[-1] - values[0]))


def test_the_distance_alone_is_not_proper():
    """Its minimiser is all on the number nearest to the median of the labels, which is far from their mean."""
    found = minimizer(WassersteinDistance(), [0.0, 1.0, 10.0], [0.0, 0.0, 10.0], [1 / 3] * 3)
    np.testing.assert_allclose(found, [1, 0, 0], atol=1e-2)
