import itertools
import math

import pytest
import torch

from raft_peft.decisions import decide
from raft_peft.distribution import GridDistribution
from raft_peft.prediction.remote.partial_distribution import PartialGridDistribution


def partial(probs, values, ceiling, rest):
    """One row; None is a probability that was not returned."""
    log_probs = [-math.inf if p is None else math.log(p) for p in probs]
    return PartialGridDistribution(
        torch.tensor([log_probs]), torch.tensor(values), torch.tensor([ceiling]), torch.tensor([rest])
    )


def test_the_bound_of_the_mean_by_hand():
    # 4 and 5 are missing: 5 takes 0.03, and of the 0.05 that there are 4 takes the other 0.02
    distribution = partial([0.5, 0.3, None, None], [1.0, 2.0, 4.0, 5.0], ceiling=0.03, rest=0.05)
    assert distribution.missing.tolist() == [[False, False, True, True]]
    assert distribution.error_bound("mean").item() == pytest.approx(5 * 0.03 + 4 * 0.02)
    # with enough for both it is the sum of |y| times the ceiling
    distribution = partial([0.5, 0.3, None, None], [1.0, 2.0, 4.0, 5.0], ceiling=0.03, rest=0.2)
    assert distribution.error_bound("mean").item() == pytest.approx((5 + 4) * 0.03)


def test_numbers_below_zero_err_in_the_other_direction():
    distribution = partial([0.9, None, None], [0.0, -3.0, 2.0], ceiling=0.04, rest=0.1)
    assert distribution.error_bound("mean").item() == pytest.approx(3 * 0.04)


def test_nothing_missing():
    distribution = partial([0.5, 0.3], [1.0, 2.0], ceiling=0.03, rest=0.2)
    for rule in ("mean", "median", "mode", "quantile:0.9", "risk_averse:0.5"):
        for renormalize in (False, True):
            assert distribution.error_bound(rule, renormalize=renormalize).item() == 0


def test_nothing_returned():
    distribution = partial([None, None], [1.0, 5.0], ceiling=0.01, rest=0.5)
    assert distribution.error_bound("mean").item() == pytest.approx(0.06)
    assert distribution.error_bound("mean", renormalize=True).item() == 4
    assert distribution.error_bound("mode").item() == 4
    assert distribution.error_bound("median").item() == 4
    # the mean may be anything from 1 to 5, and the standard deviation from 0 to 2
    assert distribution.error_bound("risk_averse:0.5").item() == 5


def test_the_mode_moves_only_where_a_missing_number_could_be_as_probable():
    assert partial([0.3, None], [1.0, 5.0], ceiling=0.29, rest=0.7).error_bound("mode").item() == 0
    assert partial([0.3, None], [1.0, 5.0], ceiling=0.31, rest=0.7).error_bound("mode").item() == 4


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="no decision rule"):
        partial([0.3, None], [1.0, 5.0], ceiling=0.1, rest=0.7).error_bound("best")


@pytest.mark.parametrize(
    "rule", ["mean", "mean renormalised", "median", "mode", "quantile:0.2", "quantile:0.85", "risk_averse:1"]
)
def test_no_distribution_that_fits_is_further_away(rule):
    """Random rows, and many ways to give missing numbers what they can have: never beyond the bound, often near."""
    generator = torch.Generator().manual_seed(0)
    name, _, renormalised = rule.partition(" ")
    renormalize = bool(renormalised)
    near = 0
    for _ in range(200):
        values = torch.randperm(19, generator=generator)[:5].float() - 9
        probs = torch.rand(7, generator=generator).pow(4)  # of five numbers and two other tokens
        probs = probs / probs.sum()
        top = probs.topk(3)
        returned = torch.zeros(7, dtype=torch.bool).index_fill(0, top.indices, True)[:5]
        rest = 1 - top.values.sum().item()
        ceiling = min(top.values[-1].item(), rest)
        distribution = PartialGridDistribution(
            torch.where(returned, probs[:5].log(), -math.inf)[None],
            values,
            torch.tensor([ceiling]),
            torch.tensor([rest]),
        )
        if not returned.any() or returned.all():
            continue
        bound = distribution.error_bound(name, renormalize=renormalize).item()
        prediction = decide(distribution, name, renormalize=renormalize).item()
        missing = [index for index in range(5) if not returned[index]]
        furthest = 0.0
        for shares in itertools.product([0.0, 0.5, 1.0], repeat=len(missing)):
            q = torch.tensor(shares) * ceiling
            if q.sum() > rest:
                q *= rest / q.sum()
            whole = probs[:5].clone()
            whole[missing] = q
            other = decide(GridDistribution(whole.log()[None], values), name, renormalize=renormalize).item()
            furthest = max(furthest, abs(other - prediction))
        assert furthest <= bound + 1e-5
        near += furthest >= 0.7 * bound
    # The bound of two terms is the sum of theirs, which are seldom reached together.
    assert near > (10 if name == "risk_averse:1" else 60)
