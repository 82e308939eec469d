"""The lemmas of the paper (Lukasik et al., ICLR 2025), on distributions over a grid, without any model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import GridDistribution, decisions
from raft_peft.losses import ExpectedSquaredError, squared_error


def distribution_of(p, values):
    return GridDistribution(torch.tensor(np.array([p], dtype=np.float64)).log().float(), torch.tensor(values).float())


def descend(loss_of, logits, *, rate, steps):
    """Plain gradient descent on the logits themselves, as if the model could say any distribution."""
    logits = logits.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss_of(logits).mean(), logits)
        with torch.no_grad():
            logits -= rate * gradient
    return logits.detach()


class TestLemma1:
    """Lemma 1: a model may be as close to the truth as one likes in KL divergence, that is, in cross-entropy, and its
    most likely number be off by N/2 or more. Its expectation is not.

    As built here: the truth p says 0 a little more often than N, the model q says N a little more often than 0.
    """

    def distributions(self, n, margin):
        low, high = [0.5 + margin, *[0.0] * (n - 1), 0.5 - margin], [0.5 - margin, *[0.0] * (n - 1), 0.5 + margin]
        return low, high

    # KL = 2 margin log((1 + 2 margin) / (1 - 2 margin)), about 8 margin^2: 8e-4, 8e-6, 8e-8
    @pytest.mark.parametrize(("margin", "divergence"), [(1e-2, 1e-3), (1e-3, 1e-5), (1e-4, 1e-7)])
    @pytest.mark.parametrize("n", [4, 9, 100])
    def test_a_small_divergence_and_a_large_error_of_the_mode(self, n, margin, divergence):
        p, q = self.distributions(n, margin)
        assert 0 < sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a) < divergence
        truth, model = (distribution_of(each, range(n + 1)) for each in (p, q))
        modes, means = ([rule(each).item() for each in (truth, model)] for rule in (decisions.mode, decisions.mean))

        assert modes == [0, n]
        # The best prediction under squared error, the true mean N (1/2 - margin), is N/2 and more away from q's mode.
        assert abs(modes[1] - means[0]) >= n / 2
        # N (1/2 + margin) - N (1/2 - margin)
        assert means[1] - means[0] == pytest.approx(2 * margin * n, rel=1e-2)

    def test_the_risk_of_the_mode_is_twice_that_of_the_mean(self):
        """E(y - d)^2 under p is N^2 / 4 at the mean of p = (1/2, 1/2), and N^2 / 2 at either end."""
        n = 10
        p, q = self.distributions(n, 1e-4)
        model = distribution_of(q, range(n + 1))
        risk = [
            sum(probability * (y - rule(model).item()) ** 2 for y, probability in enumerate(p))
            for rule in (decisions.mean, decisions.mode)
        ]
        assert risk == pytest.approx([25, 50], rel=1e-3)


@st.composite
def pairs_of_distributions(draw):
    """Two distributions over one grid, the last weight being that of all that is off it."""
    values = draw(st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True))
    weights = st.lists(st.integers(0, 9), min_size=len(values) + 1, max_size=len(values) + 1).filter(
        lambda parts: any(parts[:-1])
    )
    p, q = (np.array(draw(weights), dtype=float) for _ in range(2))
    return values, p / p.sum(), q / q.sum()


class TestLemma2:
    """Lemma 2: the error of RAIL's prediction is bounded by the distance of the model's distribution from the truth.

    As taken here: |E_p - E_q| <= max |y| ||p - q||_1 over the grid, since the difference is sum (p - q) y. By
    Pinsker's inequality the right side is at most max |y| sqrt(2 KL). By Lemma 1 there is no such bound for the mode.
    """

    @given(pairs_of_distributions())
    def test_the_means_differ_by_no_more_than_the_distributions(self, pair):
        values, p, q = pair
        difference = abs(
            decisions.mean(distribution_of(p[:-1], values)) - decisions.mean(distribution_of(q[:-1], values))
        ).item()
        assert difference <= np.abs(values).max() * np.abs(p - q)[:-1].sum() + 1e-4

    @given(pairs_of_distributions())
    def test_renormalised_they_differ_by_no_more_than_the_divergence_allows(self, pair):
        values, p, q = pair
        p, q = (each[:-1] / each[:-1].sum() for each in (p, q))
        means = [decisions.mean(distribution_of(each, values), renormalize=True) for each in (p, q)]
        with np.errstate(divide="ignore", invalid="ignore"):
            divergence = np.where(p > 0, p * np.log(p / q), 0).sum()
        assert abs(means[0] - means[1]).item() <= np.abs(values).max() * np.sqrt(2 * divergence + 1e-12) + 1e-4

    @pytest.mark.parametrize(
        ("p", "q", "difference"),
        [
            ([1, 0], [0, 1], 14),  # 7 - (-7), and the distance is 2
            ([1, 0], [0, 0], 7),  # 7 - 0 where the model says no number, and the distance over the grid is 1
            ([0.5, 0.5], [0.75, 0.25], 3.5),  # 0 and 3.5, and the distance is 1/2
        ],
    )
    def test_the_bound_is_reached(self, p, q, difference):
        values = [7, -7]
        means = [decisions.mean(distribution_of(each, values)).item() for each in (p, q)]
        assert abs(means[0] - means[1]) == pytest.approx(difference)
        assert 7 * np.abs(np.subtract(p, q)).sum() == pytest.approx(difference)


class TestLemma3:
    """Lemma 3: the minimiser of the RAFT loss predicts the conditional mean of the targets, whatever the grid, as long
    as it spans them: the two extremes 0 and N are enough.

    As built here: each row is a prompt with noisy targets of its own and logits that are free.
    """

    # Means 10/3, 7.55 (between the values of any of the grids) and 5.
    targets = torch.tensor([[1.0, 2.0, 7.0], [6.65, 8.0, 8.0], [0.0, 5.0, 10.0]])
    means = torch.tensor([10 / 3, 7.55, 5.0])

    @pytest.mark.parametrize("renormalize", [False, True])
    @pytest.mark.parametrize("grid", [[0, 10], [10, 0], [0, 5, 10], range(11)], ids=str)
    def test_it_predicts_the_mean_of_noisy_targets(self, grid, renormalize):
        ids = torch.arange(len(grid)).expand(3, -1)

        def predict(logits):
            return decisions.mean(GridDistribution.from_logits(logits, ids, list(grid)), renormalize=renormalize)

        def loss(logits):
            return squared_error(predict(logits).unsqueeze(-1), self.targets)

        # One token more than the grid has, to which probability may go as well.
        start = torch.zeros(3, len(grid) + 1)
        start[:, 0] = 2
        assert (predict(start) - self.means).abs().min() > 0.1
        end = descend(loss, start, rate=0.2, steps=150)
        torch.testing.assert_close(predict(end), self.means, atol=1e-3, rtol=0)
        # What remains is the variance of the targets: (49 + 16 + 121) / 27, (0.81 + 0.2025 + 0.2025) / 3, 50 / 3.
        remaining = torch.tensor([186 / 27, 1.215 / 3, 50 / 3])
        torch.testing.assert_close(loss(end).mean(-1), remaining, atol=1e-4, rtol=1e-5)

    def test_on_two_values_the_upper_one_gets_the_share_of_the_mean(self):
        def distribution(logits):
            return GridDistribution.from_logits(logits, torch.tensor([[0, 1]]), [0, 10])

        end = descend(
            lambda logits: squared_error(decisions.mean(distribution(logits)), torch.tensor([2.5])),
            torch.zeros(1, 2),
            rate=0.05,
            steps=150,
        )
        torch.testing.assert_close(distribution(end).probs, torch.tensor([[0.75, 0.25]]), atol=1e-4, rtol=0)


class TestLemma4:
    """Lemma 4: the minimiser of the expected squared error (MBR) is one-hot at the grid value nearest to the target,
    so that a target between grid values is lost; RAFT's is not.

    Given the grid, the expected squared error is the squared error of the mean plus the variance, and the variance is
    what punishes saying 2.4 as 0.6 of 2 and 0.4 of 3.
    """

    grid = range(5)
    ids = torch.arange(5).unsqueeze(0)

    def distribution(self, logits):
        return GridDistribution.from_logits(logits, self.ids, list(self.grid))

    def test_raft_reaches_the_target_and_mbr_the_nearest_value(self):
        target, start = torch.tensor([2.4]), torch.zeros(1, 5)
        raft = self.distribution(
            descend(
                lambda logits: squared_error(decisions.mean(self.distribution(logits)), target),
                start,
                rate=0.1,
                steps=100,
            )
        )
        mbr = self.distribution(
            descend(
                lambda logits: ExpectedSquaredError(renormalize=True)(self.distribution(logits), target),
                start,
                rate=30.0,
                steps=300,
            )
        )
        assert decisions.mean(raft).item() == pytest.approx(2.4, abs=1e-4)
        torch.testing.assert_close(mbr.probs, torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), atol=2e-3, rtol=0)
        assert decisions.mean(mbr).item() == pytest.approx(2, abs=2e-3)
        # (2.4 - 2)^2, where RAFT has no error left
        assert ExpectedSquaredError()(mbr, target).item() == pytest.approx(0.16, abs=1e-3)
        assert squared_error(decisions.mean(raft), target).item() < 1e-7

    @given(st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any), st.floats(-1, 5))
    def test_nothing_costs_less_than_the_nearest_value_alone(self, weights, target):
        loss = ExpectedSquaredError(renormalize=True)
        of_any = loss(distribution_of(np.array(weights) / sum(weights), self.grid), torch.tensor([target])).item()
        nearest = min(self.grid, key=lambda y: abs(y - target))
        of_nearest = loss(distribution_of(np.eye(5)[nearest], self.grid), torch.tensor([target])).item()
        assert of_nearest == pytest.approx((target - nearest) ** 2, abs=1e-5)
        assert of_any >= of_nearest - 1e-5

    def test_the_mean_that_is_right_costs_more_than_the_value_that_is_not(self):
        target = torch.tensor([2.4])
        right, wrong = distribution_of([0, 0, 0.6, 0.4, 0], self.grid), distribution_of([0, 0, 1, 0, 0], self.grid)
        assert decisions.mean(right).item() == pytest.approx(2.4, abs=1e-6)
        # 0.6 x 0.16 + 0.4 x 0.36 = 0.24, against 0.16
        assert ExpectedSquaredError()(right, target).item() == pytest.approx(0.24, abs=1e-6)
        assert ExpectedSquaredError()(wrong, target).item() == pytest.approx(0.16, abs=1e-6)
