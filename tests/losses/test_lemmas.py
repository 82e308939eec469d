"""The lemmas of the paper (Lukasik et al., ICLR 2025), on distributions over a grid, without any model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import GridDistribution, decisions
from raft_peft.losses import DistributionLoss, ExpectedSquaredError, squared_error


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


def the_papers_pair(n, epsilon):
    """The truth and the model of the proofs of Lemmas 1 and 2, over 0, 1, ..., N, and their alpha.

    The truth says 0 with (1 + alpha / 2) / 2 and N with (1 - alpha / 2) / 2, the model the other way around.
    """
    alpha = math.sqrt(math.exp(epsilon) - 1) / 2
    more, less = (1 + alpha / 2) / 2, (1 - alpha / 2) / 2
    return [more, *[0.0] * (n - 1), less], [less, *[0.0] * (n - 1), more], alpha


def divergence_of(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


# The lemmas speak of epsilon up to 0.5; their proof holds up to log 5, where alpha reaches 1.
EPSILONS = [1e-6, 0.01, 0.1, 0.5, math.log(5)]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_steps_of_the_proofs_of_lemmas_1_and_2(epsilon):
    p, q, alpha = the_papers_pair(9, epsilon)
    distance = sum(abs(a - b) for a, b in zip(p, q, strict=True))
    assert distance == pytest.approx(alpha) and alpha <= 1
    # The reverse Pinsker inequality, with the least probability of the two numbers that have any.
    reverse_pinsker = math.log(1 + distance**2 / min(q[0], q[-1]))
    assert reverse_pinsker == pytest.approx(math.log(1 + 2 * alpha**2 / (1 - alpha / 2)))
    assert divergence_of(p, q) <= reverse_pinsker <= math.log(1 + 4 * alpha**2) + 1e-12
    assert math.log(1 + 4 * alpha**2) == pytest.approx(epsilon)


class TestLemma1:
    """Lemma 1: a model may be as close to the truth as one likes in KL divergence, that is, in cross-entropy, and its
    most likely number be off by N/2 or more. Its expectation is not.

    As built here: the truth p says 0 a little more often than N, the model q says N a little more often than 0.
    """

    @pytest.mark.parametrize("n", [1, 5, 9])
    @pytest.mark.parametrize("epsilon", EPSILONS)
    def test_as_it_is_stated(self, epsilon, n):
        p, q, alpha = the_papers_pair(n, epsilon)
        assert divergence_of(p, q) <= epsilon
        mean, mode = decisions.mean(distribution_of(p, range(n + 1))), decisions.mode(distribution_of(q, range(n + 1)))
        error = (mean - mode).item() ** 2
        assert error == pytest.approx((n / 2) ** 2 * (1 + alpha / 2) ** 2, rel=1e-5)
        # As in the appendix. The main text has epsilon times as much, which is less for its epsilon of up to 0.5.
        assert error >= (n / 2) ** 2

    def distributions(self, n, margin):
        low, high = [0.5 + margin, *[0.0] * (n - 1), 0.5 - margin], [0.5 - margin, *[0.0] * (n - 1), 0.5 + margin]
        return low, high

    # KL = 2 margin log((1 + 2 margin) / (1 - 2 margin)), about 8 margin^2: 8e-4, 8e-6, 8e-8
    @pytest.mark.parametrize(("margin", "divergence"), [(1e-2, 1e-3), (1e-3, 1e-5), (1e-4, 1e-7)])
    @pytest.mark.parametrize("n", [4, 9, 100])
    def test_a_small_divergence_and_a_large_error_of_the_mode(self, n, margin, divergence):
        p, q = self.distributions(n, margin)
        assert 0 < divergence_of(p, q) < divergence
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
    """Lemma 2: a model within epsilon of the truth in KL divergence may be off by (N / 4)^2 epsilon with RAIL.

    That is also nearly the most, which the lemma does not say: |E_p - E_q| <= max |y| ||p - q||_1 over the grid, since
    the difference is sum (p - q) y, and by Pinsker's inequality the right side is at most max |y| sqrt(2 KL). By
    Lemma 1 there is no such bound for the mode.
    """

    @pytest.mark.parametrize("n", [1, 5, 9])
    @pytest.mark.parametrize("epsilon", EPSILONS)
    def test_as_it_is_stated(self, epsilon, n):
        p, q, alpha = the_papers_pair(n, epsilon)
        assert divergence_of(p, q) <= epsilon
        truth, model = (decisions.mean(distribution_of(each, range(n + 1))) for each in (p, q))
        error = (truth - model).item() ** 2
        assert error == pytest.approx((alpha * n / 2) ** 2, rel=1e-2)
        assert (alpha * n / 2) ** 2 == pytest.approx((n / 4) ** 2 * (math.exp(epsilon) - 1))
        assert (alpha * n / 2) ** 2 >= (n / 4) ** 2 * epsilon

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

    def test_of_noisy_targets_it_is_the_value_nearest_to_their_mean(self):
        # Mean 2.4 again, and no target near it.
        targets = torch.tensor([0.0, 1.0, 3.0, 3.5, 4.5])

        def loss(logits):
            distribution = GridDistribution.from_logits(logits.expand(5, -1), self.ids.expand(5, -1), list(self.grid))
            return ExpectedSquaredError(renormalize=True)(distribution, targets)

        end = self.distribution(descend(loss, torch.zeros(1, 5), rate=30.0, steps=300))
        torch.testing.assert_close(end.probs, torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), atol=2e-3, rtol=0)

    def test_over_the_whole_vocabulary_it_leaves_the_grid(self):
        """The lemma is one of distributions on the grid: elsewhere eq. 14 costs nothing."""

        def distribution(logits):
            return GridDistribution.from_logits(logits, self.ids + 1, list(self.grid))

        end = descend(
            lambda logits: ExpectedSquaredError()(distribution(logits), torch.tensor([2.4])),
            torch.zeros(1, 6),
            rate=10.0,
            steps=500,
        )
        assert distribution(end).mass.item() < 0.02
        # Of eq. 13 the draws off the grid cost 2.4^2, so that its minimiser is that of the lemma.
        costs = [(2.4 - y) ** 2 for y in (0, *self.grid)]
        assert min(costs) == costs[1 + 2] == pytest.approx(0.16)


class ExpectedAbsoluteError(DistributionLoss):
    """E |y* - y| over y ~ p(. | x) on the grid."""

    def __call__(self, distribution, target):
        return (distribution.renormalized().probs * (target.unsqueeze(-1) - distribution.values).abs()).sum(-1)


class TestLemma5:
    """Lemma 5: for any loss, the minimiser of its expectation over targets and answers is one-hot, at the number which
    the expected loss over the targets is least for. As built here with the absolute loss, whose number is one of the
    two around the median of the targets, where that of the squared loss is the nearest to their mean.
    """

    grid = range(7)
    targets = torch.tensor([0.4, 0.8, 1.4, 4.9, 6.0])  # the median is 1.4, the mean 2.7

    def loss_of(self, expected_loss, logits):
        distribution = GridDistribution.from_logits(logits.expand(5, -1), torch.arange(7).expand(5, -1), range(7))
        return expected_loss(distribution, self.targets)

    @pytest.mark.parametrize(
        ("expected_loss", "number", "cost"),
        [
            # 0.6 + 0.2 + 0.4 + 3.9 + 5 = 10.1, where 2 costs 1.6 + 1.2 + 0.6 + 2.9 + 4 = 10.3
            (ExpectedAbsoluteError(), 1, 10.1 / 5),
            # 2.6^2 + 2.2^2 + 1.6^2 + 1.9^2 + 3^2 = 26.77
            (ExpectedSquaredError(renormalize=True), 3, 26.77 / 5),
        ],
        ids=["absolute", "squared"],
    )
    def test_descent_ends_at_one_number(self, expected_loss, number, cost):
        end = descend(lambda logits: self.loss_of(expected_loss, logits), torch.zeros(1, 7), rate=50.0, steps=400)
        torch.testing.assert_close(end.softmax(-1), torch.eye(7)[[number]], atol=5e-3, rtol=0)
        assert self.loss_of(expected_loss, end).mean().item() == pytest.approx(cost, abs=5e-3)

    @given(
        st.lists(st.integers(0, 9), min_size=7, max_size=7).filter(any),
        st.lists(st.floats(-2, 8), min_size=1, max_size=6),
    )
    def test_nothing_costs_less_than_one_number_beside_the_median(self, weights, targets):
        targets = torch.tensor(targets, dtype=torch.float64).float()

        def cost(p):
            distribution = GridDistribution(distribution_of(p, self.grid).log_probs.expand(len(targets), -1), values)
            return ExpectedAbsoluteError()(distribution, targets).mean().item()

        values = torch.tensor(self.grid).float()
        costs = [cost(one) for one in np.eye(7)]
        assert cost(np.array(weights) / sum(weights)) >= min(costs) - 1e-5
        median = np.clip(targets.sort().values[(len(targets) - 1) // 2].item(), 0, 6)
        assert min(costs) == pytest.approx(min(costs[math.floor(median)], costs[math.ceil(median)]), abs=1e-5)
