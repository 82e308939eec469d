"""Sets of options: by hand, and as often right as promised."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from raft_peft.metrics import set_metrics
from raft_peft.prediction.calibrating.intervals.option_sets import TrueOptions


def true_options(probabilities):
    """Of as many rows with one true option each."""
    probabilities = np.array([[one, 1 - one] for one in probabilities])
    return TrueOptions.of(probabilities, np.array([[1.0, 0.0]] * len(probabilities)))


def test_by_hand():
    found = true_options([0.3, 0.9, 0.5, 0.7])
    assert (found.probabilities, found.shares, found.rows) == ((0.9, 0.7, 0.5, 0.3), (1, 1, 1, 1), 4)
    # ranks of 5 places: 0.2 -> 1, 0.5 -> ceil(2.5) = 3, 0.6 -> 3, 0.61 -> 4, 0.8 -> 4
    assert [found.least_probability(level) for level in (0.2, 0.5, 0.6, 0.61, 0.8)] == [0.9, 0.5, 0.5, 0.3, 0.3]
    with pytest.raises(ValueError, match=r"4 held-out rows of 'x' cannot .* calibrate on 9 rows or more"):
        found.least_probability(0.9, " of 'x'")
    with pytest.raises(ValueError, match="not between 0 and 1"):
        found.sets(np.array([[1.0, 0.0]]), 1.0)


def test_sets_hold_the_likeliest_option_and_ties():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.35, 0.33, 0.32], [np.nan] * 3])
    # From 0.5 on at 0.6, from 0.3 on at 0.8.
    found = true_options([0.3, 0.9, 0.5, 0.7])
    every = [True, True, True]
    assert found.sets(probabilities, 0.6).tolist() == [
        [False, True, False],
        [True, False, False],
        [True, False, False],
        every,
    ]
    assert found.sets(probabilities, 0.8).tolist() == [[False, True, True], [True, False, True], every, every]


def test_shares_by_hand():
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]])
    found = TrueOptions.of(probabilities, np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]))
    assert found.probabilities == (0.9, 0.8, 0.6, 0.4, 0.2)
    assert found.shares == (1, 0.75, 0.5, 0.5, 0.25)
    # 4 x 0.5 = 2 of the shares are reached at 0.6 (2.25); 4 x 0.6 = 2.4 at 0.4 (2.75); 4 x 0.75 = 3 at the last.
    assert [found.least_probability(level) for level in (0.5, 0.6, 0.75)] == [0.6, 0.4, 0.2]


# One option a row covers 21 / 26 at rank ceil(26 x 0.8). The bound for shares is level + 2 / 26.
@pytest.mark.parametrize(("raters", "least", "most"), [(1, 0.80, 0.82), (5, 0.80, 0.84)])
def test_the_true_option_is_in_as_often_as_promised(raters, least, most):
    """Of 25 held-out rows, for a model that is far too sure."""
    rng, level, covered = np.random.default_rng(0), 0.8, []
    for _ in range(1000):
        truth = rng.dirichlet([0.7] * 4, size=45)
        model = truth**3 / (truth**3).sum(1, keepdims=True)
        shares = rng.multinomial(raters, truth) / raters
        sets = TrueOptions.of(model[:25], shares[:25]).sets(model[25:], level)
        covered.append(set_metrics(sets, shares[25:])["coverage"])
    assert least < np.mean(covered) < most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": [0.5, 1.5]}, "its probabilities are not a list of numbers from 0 to 1"),
        ({"shares": None}, "its shares are not a list"),
        ({"shares": [1.0]}, "it has 2 probabilities and 1 shares"),
        ({"probabilities": [0.2, 0.5]}, "do not fall"),
        ({"rows": 3}, "its shares sum to 2, and not to the number of its rows, 3"),
        ({"rows": "2"}, "the number of its rows, '2'"),
    ],
)
def test_what_is_no_such_record(change, message):
    good = true_options([0.2, 0.5])
    read = json.loads(json.dumps(asdict(good)))
    assert TrueOptions.read(read) == good
    with pytest.raises(ValueError, match=message):
        TrueOptions.read({**read, **change})
    with pytest.raises(ValueError, match="probabilities are not a list"):
        TrueOptions.read([])
