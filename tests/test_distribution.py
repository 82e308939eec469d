import math

import pytest
import torch

from raft_peft import GridDistribution, decisions
from raft_peft.distribution import _LogProbsOfTokens

# One row, four tokens with probabilities 0.1, 0.2, 0.3 and 0.4; the grid 10, 20, 30 on the first three.
LOGITS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
IDS = torch.tensor([[0, 1, 2]])


def test_probabilities_are_over_the_whole_vocabulary():
    distribution = GridDistribution.from_logits(LOGITS + 7, IDS, [10, 20, 30])
    torch.testing.assert_close(distribution.probs, torch.tensor([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(distribution.mass, torch.tensor([0.6]))
    torch.testing.assert_close(distribution.mass_off_grid, torch.tensor([0.4]))


def test_the_mean():
    # 10 x 0.1 + 20 x 0.2 + 30 x 0.3 = 14; divided by the mass 0.6 it is 23.333
    distribution = GridDistribution.from_logits(LOGITS, IDS, [10, 20, 30])
    torch.testing.assert_close(decisions.mean(distribution), torch.tensor([14.0]))
    torch.testing.assert_close(decisions.mean(distribution, renormalize=True), torch.tensor([14 / 0.6]))


def test_entropy_is_that_of_the_renormalised_grid():
    distribution = GridDistribution.from_logits(LOGITS, IDS, [10, 20, 30])
    expected = -sum(p * math.log(p) for p in (1 / 6, 1 / 3, 1 / 2))
    assert distribution.entropy.item() == pytest.approx(expected, rel=1e-6)
    certain = GridDistribution.from_logits(torch.tensor([[300.0, 0.0, 0.0]]), torch.tensor([[0, 1]]), [1, 2])
    assert certain.entropy.item() == 0


def test_each_row_may_have_its_own_tokens():
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1], [4, 3]])
    expected = torch.stack([logits.softmax(-1)[0, [0, 1]], logits.softmax(-1)[1, [4, 3]]])
    torch.testing.assert_close(GridDistribution.from_logits(logits, ids, [1, 2]).probs, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_whatever_the_logits(dtype):
    distribution = GridDistribution.from_logits(LOGITS.to(dtype), IDS, [10, 20, 30])
    assert distribution.log_probs.dtype == torch.float32


def test_extreme_logits_stay_finite():
    distribution = GridDistribution.from_logits(torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[0, 1]]), [1, 5])
    assert decisions.mean(distribution).item() == 1
    assert distribution.log_probs.isfinite().all()


def test_the_gradient_of_log_probabilities():
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([[0, 1], [6, 6], [3, 2]])  # a token may stand for two numbers
    assert torch.autograd.gradcheck(lambda logits: _LogProbsOfTokens.apply(logits, ids), logits)


def test_the_gradient_where_tokens_are_ruled_out():
    # p = 1/3, 2/3 and 0: the gradient of log p(0) is (1 - 1/3, -2/3, 0)
    logits = torch.tensor([[0.0, math.log(2), -torch.inf]], requires_grad=True)
    GridDistribution.from_logits(logits, torch.tensor([[0]]), [1]).log_probs.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[2 / 3, -2 / 3, 0.0]]))


class TestOnAnUnsortedGrid:
    """On 10, -1, 4, 0.1 the probabilities 0.1, 0.2, 0.3, 0.2, a fifth of it all off the grid: -1, 0.1, 4, 10 have a
    quarter, a quarter, 3 / 8 and an eighth."""

    distribution = GridDistribution(torch.tensor([[0.1, 0.2, 0.3, 0.2]]).log(), torch.tensor([10.0, -1.0, 4.0, 0.1]))

    def test_quantiles(self):
        found = [self.distribution.quantile(level).item() for level in (0.2, 0.25, 0.3, 0.5, 0.51, 0.875, 0.9)]
        assert found == pytest.approx([-1, -1, 0.1, 0.1, 4, 4, 10])

    def test_central_intervals(self):
        # an eighth on either side; then a quarter on either, of which -1 is the last to reach it
        assert [end.item() for end in self.distribution.interval(0.9)] == [-1, 10]
        assert [end.item() for end in self.distribution.interval(0.5)] == [-1, 4]
        assert [end.item() for end in self.distribution.interval(0.1)] == pytest.approx([0.1, 4])

    def test_the_probability_of_at_least(self):
        found = [self.distribution.prob_at_least(t).item() for t in (-2, -1, 0, 0.1, 0.2, 4, 5, 10, 11)]
        assert found == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5, 0.125, 0.125, 0])

    def test_the_standard_deviation(self):
        mean = (-1 + 0.1) / 4 + 4 * 3 / 8 + 10 / 8
        square = (1 + 0.01) / 4 + 16 * 3 / 8 + 100 / 8
        assert self.distribution.std.item() == pytest.approx(math.sqrt(square - mean**2))
        # Far from 0 the difference of squares would have no digit left.
        far = GridDistribution(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1e6, 1e6 + 1]))
        assert far.std.item() == pytest.approx(0.5)

    def test_what_is_refused(self):
        for level in (0, 1, math.nan):
            with pytest.raises(ValueError, match="level is between 0 and 1"):
                self.distribution.interval(level)
        with pytest.raises(ValueError, match="threshold is NaN"):
            self.distribution.prob_at_least(math.nan)

    def test_nothing_hides_a_model_that_has_diverged(self):
        diverged = GridDistribution(torch.tensor([[math.nan, 0.0]]), torch.tensor([1.0, 2.0]))
        for found in (diverged.std, *diverged.interval(0.5), diverged.prob_at_least(1), diverged.prob_at_least(5)):
            assert found.isnan().all()
