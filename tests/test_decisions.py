"""Each rule minimises its expected loss, computed here in float64 at the decision and at many other numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft_peft import GridDistribution, decisions

RULES = ["mean", "median", "mode", "quantile:0.1", "quantile:0.9"]
NO_RULES = [
    "average",
    "Mean",
    "",
    "mean:1",
    "median:0.5",
    "quantile",
    "quantile:",
    "quantile:x",
    "quantile:0",
    "quantile:1",
    "quantile:-0.5",
    "quantile:1.5",
    "quantile:nan",
    "quantile:0.5:0.5",
    "risk_averse",
    "risk_averse:0",
    "risk_averse:-1",
    "risk_averse:inf",
    "risk_averse:nan",
]


def distribution_of(values, weights, off_grid=0):
    """One row whose probabilities are in proportion to the weights."""
    p = np.array([weights], dtype=np.float64) / (sum(weights) + off_grid)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return GridDistribution(torch.tensor(log_p, dtype=torch.float32), torch.tensor(values, dtype=torch.float32))


@st.composite
def weighted_grids(draw):
    """Quarters in any order, with small whole weights, so that zeros and ties are common, on the grid and off it."""
    values = draw(st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=2, max_size=6, unique=True))
    weights = draw(st.lists(st.integers(0, 6), min_size=len(values), max_size=len(values)).filter(any))
    return values, weights, draw(st.integers(0, 6))


def other_numbers(values, decision):
    """Every grid value, the middles between neighbours, numbers in between and beyond, and the decision's vicinity."""
    ordered = np.sort(values)
    return np.concatenate(
        [
            ordered,
            (ordered[1:] + ordered[:-1]) / 2,
            np.linspace(ordered[0] - 3, ordered[-1] + 3, 101),
            decision + np.array([-1e-2, -1e-3, 1e-3, 1e-2]),
        ]
    )


def excess(loss, values, weights, decision):
    """By how much the expected loss of the decision exceeds the least one among all the other numbers."""
    values, p = np.array(values), np.array(weights) / np.sum(weights)
    return p @ loss(values, decision) - min(p @ loss(values, number) for number in other_numbers(values, decision))


class TestEachRuleIsTheMinimiser:
    @given(weighted_grids())
    def test_the_mean_of_the_expected_squared_error(self, grid):
        values, weights, off_grid = grid
        decision = decisions.mean(distribution_of(values, weights, off_grid), renormalize=True).item()
        assert excess(lambda y, d: (y - d) ** 2, values, weights, decision) < 1e-8

    @given(weighted_grids())
    def test_the_mean_over_the_vocabulary_where_all_else_means_zero(self, grid):
        values, weights, off_grid = grid
        decision = decisions.mean(distribution_of(values, weights, off_grid)).item()
        # A further value 0, with the weight of all that is not on the grid.
        assert excess(lambda y, d: (y - d) ** 2, [*values, 0.0], [*weights, off_grid], decision) < 1e-8

    @given(weighted_grids())
    def test_the_median_of_the_expected_absolute_error(self, grid):
        values, weights, off_grid = grid
        decision = decisions.median(distribution_of(values, weights, off_grid)).item()
        assert decision in values
        assert excess(lambda y, d: np.abs(y - d), values, weights, decision) < 1e-5

    @given(weighted_grids(), st.floats(0.01, 0.99))
    def test_the_quantile_of_the_expected_pinball_loss(self, grid, level):
        values, weights, off_grid = grid
        decision = decisions.quantile(distribution_of(values, weights, off_grid), level).item()
        assert decision in values
        # Too low by one costs `level`, too high by one costs 1 - level.
        assert (
            excess(lambda y, d: np.maximum(level * (y - d), (1 - level) * (d - y)), values, weights, decision) < 1e-5
        )

    @given(weighted_grids())
    def test_the_mode_of_the_expected_0_1_loss(self, grid):
        values, weights, off_grid = grid
        decision = decisions.mode(distribution_of(values, weights, off_grid)).item()
        assert excess(lambda y, d: (y != d).astype(float), values, weights, decision) < 1e-6

    def test_the_losses_of_this_file_tell_decisions_apart(self):
        # 0, 1, 10 with 0.4, 0.35, 0.25: mean 2.85, median 1, mode 0, and each is worse than the other at its own loss.
        values, weights = [0, 1, 10], [8, 7, 5]
        assert excess(lambda y, d: (y - d) ** 2, values, weights, 1.0) == pytest.approx(1.85**2, rel=1e-2)
        # absolute error: at 0 it is 0.35 + 2.5 = 2.85, at 1 it is 0.4 + 2.25 = 2.65
        assert excess(lambda y, d: np.abs(y - d), values, weights, 0.0) == pytest.approx(0.2)
        assert excess(lambda y, d: (y != d).astype(float), values, weights, 1.0) == pytest.approx(0.05)


class TestByHand:
    # 40 % of the probability off the grid: 0.24, 0.21, 0.15 on it, which are 0.4, 0.35, 0.25 of it.
    distribution = distribution_of([0, 1, 10], [8, 7, 5], off_grid=40 / 3)

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ("mean", 1.71),  # 0.21 + 1.5
            ("median", 1),  # on the grid 0.4, then 0.75; over the vocabulary one half is reached at 10 alone
            ("mode", 0),
            ("quantile:0.3", 0),
            ("quantile:0.7", 1),
            ("quantile:0.9", 10),
            # on the grid the mean is 2.85, the mean square 0.35 + 25, the variance 25.35 - 2.85^2
            ("risk_averse:0.5", 2.85 - 0.5 * math.sqrt(25.35 - 2.85**2)),
        ],
    )
    def test_decide_takes_the_rule_by_its_name(self, rule, expected):
        assert decisions.decide(self.distribution, rule).item() == pytest.approx(expected, rel=1e-6)

    def test_renormalising_concerns_the_mean_alone(self):
        decided = [decisions.decide(self.distribution, rule, renormalize=True).item() for rule in RULES]
        # 0.35 + 2.5 = 2.85
        assert decided == pytest.approx([2.85, 1, 0, 0, 10], rel=1e-6)

    def test_the_order_of_the_grid_does_not_matter(self):
        # The same as above, but 10, 0, 1.
        turned = distribution_of([10, 0, 1], [5, 8, 7], off_grid=40 / 3)
        for rule in RULES:
            expected = decisions.decide(self.distribution, rule)
            torch.testing.assert_close(decisions.decide(turned, rule), expected, rtol=1e-6, atol=0)

    def test_every_row_is_decided_by_itself(self):
        p = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3]])
        distribution = GridDistribution(p.log(), torch.tensor([3.0, -1.0, 2.0]))
        # sorted -1, 2, 3 with 0.3, 0.1, 0.6; then 0.3, 0.6, 0.1; then 0.4, 0.3, 0.3
        assert decisions.median(distribution).tolist() == [3, 2, 2]
        assert decisions.quantile(distribution, 0.35).tolist() == [2, 2, -1]
        assert decisions.mode(distribution).tolist() == [3, 2, -1]
        # 1.8 - 0.3 + 0.2, 0.3 - 0.3 + 1.2, 0.9 - 0.4 + 0.6
        torch.testing.assert_close(decisions.mean(distribution), torch.tensor([1.7, 1.2, 1.1]))

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("hot", [0, 1, 2])
    def test_one_hot(self, rule, hot):
        weights = [int(index == hot) for index in range(3)]
        decided = decisions.decide(distribution_of([7, -2.5, 4], weights), rule)
        assert decided.tolist() == [[7, -2.5, 4][hot]]
        assert (decided.dtype, decided.shape) == (torch.float32, (1,))

    @pytest.mark.parametrize("rule", ["median", "mode", "quantile:0.01", "quantile:0.99"])
    def test_one_hot_with_next_to_nothing_on_the_grid(self, rule):
        # e^-80 and e^-95 over the vocabulary are 1 - 3e-7 and 3e-7 given the grid.
        distribution = GridDistribution(torch.tensor([[-95.0, -80.0]]), torch.tensor([1.0, 2.0]))
        assert decisions.decide(distribution, rule).item() == 2
        assert decisions.mean(distribution).item() == pytest.approx(0, abs=1e-30)
        assert decisions.mean(distribution, renormalize=True).item() == pytest.approx(2, abs=1e-6)

    def test_ties(self):
        # Half on either side of the gap between 2 and 3, where every number is a median: the smallest one.
        assert decisions.median(distribution_of([4, 3, 2, 1], [1, 1, 1, 1])).item() == 2
        # 0.3 + 0.2 reaches one half, although float32 knows neither.
        assert decisions.median(distribution_of([1, 2, 3], [3, 2, 5])).item() == 2
        assert decisions.quantile(distribution_of([1, 2, 3], [1, 2, 7]), 0.3).item() == 2
        # What is not possible is no tie: the median stays on 1, not on the 2 between.
        assert decisions.median(distribution_of([1, 2, 3], [1, 0, 1])).item() == 1
        assert decisions.mode(distribution_of([5, 8, 2], [2, 1, 2])).item() in (5, 2)

    def test_the_quantile_grows_with_its_level(self):
        distribution = distribution_of([3, 1, 2, 0], [4, 2, 3, 1])  # 0.1, 0.2, 0.3, 0.4 in order
        levels = [0.05, 0.15, 0.25, 0.35, 0.55, 0.65, 0.99, 1 - 1e-9]
        assert [decisions.quantile(distribution, level).item() for level in levels] == [0, 1, 1, 2, 2, 3, 3, 3]

    def test_a_level_that_rounding_keeps_out_of_reach(self):
        # 73 times 1/73 in float32, by way of its logarithm, is 1 - 2e-7.
        assert decisions.quantile(distribution_of(range(73), [1] * 73), 1 - 1e-9).item() == 72


class TestRefusals:
    @pytest.mark.parametrize("rule", NO_RULES)
    def test_a_rule_that_does_not_exist_is_named_with_the_cure(self, rule):
        message = (
            rf"no decision rule '{rule}'\. Use mean, median, mode, a quantile such as quantile:0\.9, or risk_averse"
        )
        with pytest.raises(ValueError, match=message):
            decisions.check_rule(rule)
        with pytest.raises(ValueError, match=message):
            decisions.decide(distribution_of([1, 2], [1, 1]), rule)

    @pytest.mark.parametrize("rule", [*RULES, "quantile:0.5", "quantile:1e-3", "risk_averse:2"])
    def test_rules_that_exist_pass(self, rule):
        decisions.check_rule(rule)

    @pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, float("nan")])
    def test_a_level_that_is_none(self, level):
        with pytest.raises(ValueError, match=rf"level is between 0 and 1, got {level}"):
            decisions.quantile(distribution_of([1, 2], [1, 1]), level)

    @pytest.mark.parametrize("aversion", [0, -1, float("nan"), float("inf")])
    def test_an_aversion_that_is_none(self, aversion):
        with pytest.raises(ValueError, match=rf"finite number above 0, got {aversion}"):
            decisions.risk_averse(distribution_of([1, 2], [1, 1]), aversion)


def test_of_two_items_with_one_mean_the_surer_ranks_first():
    values = torch.tensor([5.0, 1.0, 3.0])
    distribution = GridDistribution(torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]).log(), values)
    assert decisions.mean(distribution).tolist() == [3, 3]
    # standard deviations 2 and sqrt(2)
    assert decisions.risk_averse(distribution, 2).tolist() == pytest.approx([-1, 3 - 2 * math.sqrt(2)])


def test_which_rules_choose_from_the_grid():
    assert [rule for rule in (*RULES, "risk_averse:1") if not decisions.chooses_from_grid(rule)] == [
        "mean",
        "risk_averse:1",
    ]


@pytest.mark.parametrize("rule", ["mean", "median", "mode", "quantile:0.9", "risk_averse:1"])
def test_no_rule_hides_a_model_that_has_diverged(rule):
    log_probs = torch.tensor([[float("nan")] * 2, [0.5, 0.5]]).log()
    numbers = decisions.decide(GridDistribution(log_probs, torch.tensor([1.0, 2.0])), rule)
    assert numbers.isnan().tolist() == [True, False]


@pytest.mark.parametrize("count", [35, 70, 99])
def test_quantiles_of_large_uniform_grids(count):
    """k of n equal probabilities reach the level k / n, whatever their float32 sum rounds to."""
    values = torch.arange(1.0, count + 1)
    uniform = GridDistribution(torch.full((1, count), 1 / count).log(), values)
    for k in range(1, count):
        assert decisions.quantile(uniform, k / count).item() == k
    assert decisions.quantile(GridDistribution(torch.tensor([[0.0, 1.0]]).log(), torch.tensor([1.0, 2.0])), 1e-9) == 2
