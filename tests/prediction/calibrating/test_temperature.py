"""The temperature at which distributions are as sure as they are right."""

import math

import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.data.ratings import Ratings, rating_tensors
from raft_peft.losses.label_shares import mean_two_hot, two_hot
from raft_peft.prediction.calibrating.temperature import fitted_temperature


def test_temperature_by_hand():
    """Two numbers, log-odds 2 throughout, and three rows in four with the likelier: log-odds of log 3 fit best."""
    log_probs = torch.tensor([[0.0, 2.0]]).log_softmax(-1).repeat(4, 1) - 3  # most of the mass is off the grid
    distribution = GridDistribution(log_probs, torch.tensor([1.0, 5.0]))
    # A label of 4 is three quarters at 5, and one beyond the grid is its end.
    for labels in ([5.0, 5.0, 5.0, 1.0], [4.0, 4.0, 4.0, 4.0], [9.0, 9.0, 9.0, -3.0]):
        shares = two_hot(torch.tensor(labels), distribution.values)
        assert fitted_temperature(distribution, shares) == pytest.approx(2 / math.log(3), rel=1e-3)


def test_each_rating_counts():
    log_probs = torch.tensor([[0.0, 2.0]]).log_softmax(-1).repeat(2, 1)
    values = torch.tensor([1.0, 5.0])
    labels = [4.0, 4.0]
    ratings = [Ratings.of([5, 5, 5, 1]), None]
    shares = mean_two_hot(*rating_tensors(labels, ratings), values)
    assert shares.tolist() == [[0.25, 0.75], [0.25, 0.75]]
    # Among the numbers 1, 4, 5 a plain 4 is itself, while the ratings are none of it.
    shares = mean_two_hot(*rating_tensors(labels, ratings), torch.tensor([4.0, 1.0, 5.0]))
    assert shares.tolist() == [[0, 0.25, 0.75], [1, 0, 0]]
    assert fitted_temperature(GridDistribution(log_probs, values), torch.full((2, 2), 0.5)) > 20


def test_temperature_with_values_in_any_order_and_ruled_out():
    log_probs = torch.tensor([[2.0, 0.0, -torch.inf]]).log_softmax(-1).repeat(4, 1)
    distribution = GridDistribution(log_probs, torch.tensor([5.0, 1.0, 9.0]))
    found = fitted_temperature(distribution, two_hot(torch.tensor([5.0, 5.0, 5.0, 1.0]), distribution.values))
    assert found == pytest.approx(2 / math.log(3), rel=1e-3)
    tempered = distribution.tempered(found)
    assert tempered.probs[0].tolist() == pytest.approx([0.75, 0.25, 0], abs=1e-3)
    with pytest.raises(ValueError, match="positive"):
        distribution.tempered(0)
