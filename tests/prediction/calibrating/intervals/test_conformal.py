"""Scores of labels in distributions, the intervals that they give, and grids that these are rounded to."""

import math

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.prediction.calibrating.intervals.conformal import (
    central_intervals,
    rank_of,
    rounded_to_grid,
    spreads,
    tails,
)

# Sorted: 1, 2, 3 with 0.2, 0.5 and 0.3, a tenth of the whole vocabulary, given in another order.
ONE = GridDistribution(torch.tensor([[0.03, 0.02, 0.05]]).log(), torch.tensor([3.0, 1.0, 2.0]))


def times(distribution, rows):
    return GridDistribution(distribution.log_probs.repeat(rows, 1), distribution.values)


def test_ranks():
    assert [rank_of(level, 9) for level in (0.1, 0.5, 0.55, 0.9)] == [1, 5, 6, 9]
    # 10 x 0.7 is 7.000000000000001 in float64
    assert rank_of(0.7, 9) == 7
    with pytest.raises(ValueError, match=r"8 held-out rows of x cannot warrant.*calibrate on 9 rows"):
        rank_of(0.9, 8, " of x")


def test_spreads_by_hand():
    # mean 2.1, variance 0.2 x 1.21 + 0.5 x 0.01 + 0.3 x 0.81; a gap of 1
    assert spreads(ONE) == pytest.approx([math.sqrt(0.49 + 1 / 12)])
    sure = GridDistribution(torch.tensor([[0.0, -math.inf, -math.inf]]), torch.tensor([0.0, 1.0, 8.0]))
    # gaps of 4 on average
    assert spreads(sure) == pytest.approx([4 / math.sqrt(12)])
    assert 0 < spreads(GridDistribution(sure.log_probs, torch.ones(3))) < 1e-30


def test_tails_by_hand():
    labels = np.array([0.5, 1, 1.25, 1.5, 2, 2.5, 3, 3.1])
    # below: 0, 0.1 at the end, 0.15 half way to 0.2 in the middle of 1 and 2, 0.45, 0.7, 0.85, 1
    below = np.array([0, 0.1, 0.15, 0.2, 0.45, 0.7, 0.85, 1])
    assert tails(times(ONE, 8), labels) == pytest.approx(2 * np.minimum(below, 1 - below))


def test_an_uneven_grid_is_interpolated_between_its_middles():
    uneven = GridDistribution(torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.tensor([0.0, 1.0, 4.0]))
    # 0.25 at 0.5 and 0.75 at 2.5: half at 1.5
    assert tails(times(uneven, 2), np.array([0.5, 1.5])) == pytest.approx([0.5, 1])
    assert [end[0] for end in central_intervals(uneven, np.array([1.0]))] == pytest.approx([1.5, 1.5])


def test_a_label_lies_at_the_end_of_the_interval_of_its_tail():
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([0.0, 5.0, 1.0, 2.5, 2.0])
    distribution = GridDistribution((4 * torch.randn(200, 5, generator=generator)).log_softmax(-1), grid)
    labels = np.random.default_rng(0).uniform(0, 5, 200)
    low, high = central_intervals(distribution, tails(distribution, labels))
    # Where there is next to no probability, roundings of the tail move the end.
    assert np.minimum(np.abs(labels - low), np.abs(labels - high)) == pytest.approx(np.zeros(200), abs=1e-3)
    assert ((low <= labels) & (labels <= high)).all()
    # A smaller tail belongs to an interval that holds the other.
    wider = central_intervals(distribution, tails(distribution, labels) / 2)
    assert (wider[0] <= low).all() and (wider[1] >= high).all()


def test_small_tails_keep_their_digits():
    sure = GridDistribution(torch.tensor([[-50.0, 0.0, -60.0]]), torch.tensor([1.0, 2.0, 3.0]))
    assert tails(times(sure, 2), np.array([1.0, 3.0])) == pytest.approx([math.exp(-50), math.exp(-60)], rel=1e-5)
    # Between the two tails, 1 is within and 3 is not: half of e^-55 above is reached next to 2.5.
    low, high = central_intervals(sure, np.array([math.exp(-55)]))
    assert low[0] == 1 and high[0] == pytest.approx(2.5, abs=1e-2)


def test_nothing_hides_a_model_that_has_diverged():
    diverged = GridDistribution(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0]))
    assert np.isnan(spreads(diverged)).tolist() == [True, False]
    assert np.isnan(tails(diverged, np.array([1.0, 1.0]))).tolist() == [True, False]
    for end in central_intervals(diverged, np.array([0.5, 0.5])):
        assert np.isnan(end).tolist() == [True, False]
        assert np.isnan(rounded_to_grid(end, end, np.array([1.0, 2.0]))[0]).tolist() == [True, False]


def test_many_rows_are_read_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    distribution = GridDistribution(
        torch.randn(11, 3, generator=generator).log_softmax(-1), torch.tensor([1.0, 2.0, 3.0])
    )
    labels = np.linspace(0.5, 3.5, 11)
    whole = tails(distribution, labels)
    ends = central_intervals(distribution, whole)
    monkeypatch.setattr("raft_peft.prediction.calibrating.intervals.conformal._NUMBERS_AT_ONCE", 12)
    assert (tails(distribution, labels) == whole).all()
    np.testing.assert_array_equal(central_intervals(distribution, whole), ends)
    none = GridDistribution(torch.empty(0, 3), distribution.values)
    assert tails(none, np.empty(0)).shape == central_intervals(none, np.empty(0))[0].shape == (0,)


def test_rounding_keeps_the_numbers_that_lie_within():
    low = np.array([0.9, 1.0, 1.1, 1.1, 1.6, -9.0])
    high = np.array([3.1, 3.0, 2.9, 1.4, 1.9, 9.0])
    found = rounded_to_grid(low, high, np.array([3.0, 1.0, 2.0, 4.0]))
    # Without a number of the grid it is the nearest to the middle.
    assert [end.tolist() for end in found] == [[1, 1, 2, 1, 2, 1], [3, 3, 2, 1, 2, 4]]
    draw = np.random.default_rng(0)
    low, high = np.sort(draw.uniform(0, 5, (2, 500)), axis=0)
    first, last = rounded_to_grid(low, high, np.arange(6))
    for number in range(6):
        before, after = (low <= number) & (number <= high), (first <= number) & (number <= last)
        assert (after >= before).all()
        # More only where there was none.
        assert (after == before)[np.ceil(low) <= np.floor(high)].all()
