"""The temperature at which distributions are as sure as they are right."""

import math

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution
from raft_peft.prediction.temperature import fitted_temperature


def test_temperature_by_hand():
    """Two numbers, log-odds 2 throughout, and three rows in four with the likelier: log-odds of log 3 fit best."""
    log_probs = torch.tensor([[0.0, 2.0]]).log_softmax(-1).repeat(4, 1) - 3  # most of the mass is off the grid
    distribution = GridDistribution(log_probs, torch.tensor([1.0, 5.0]))
    assert fitted_temperature(distribution, np.array([5.0, 5.0, 5.0, 1.0])) == pytest.approx(2 / math.log(3), rel=1e-3)
    # A label of 4 is three quarters at 5, and one beyond the grid is its end
    assert fitted_temperature(distribution, np.array([4.0, 4.0, 4.0, 4.0])) == pytest.approx(2 / math.log(3), rel=1e-3)
    assert fitted_temperature(distribution, np.array([9.0, 9.0, 9.0, -3.0])) == pytest.approx(
        2 / math.log(3), rel=1e-3
    )


def test_temperature_with_values_in_any_order_and_ruled_out():
    log_probs = torch.tensor([[2.0, 0.0, -torch.inf]]).log_softmax(-1).repeat(4, 1)
    distribution = GridDistribution(log_probs, torch.tensor([5.0, 1.0, 9.0]))
    found = fitted_temperature(distribution, np.array([5.0, 5.0, 5.0, 1.0]))
    assert found == pytest.approx(2 / math.log(3), rel=1e-3)
    tempered = distribution.tempered(found)
    assert tempered.probs[0].tolist() == pytest.approx([0.75, 0.25, 0], abs=1e-3)
    with pytest.raises(ValueError, match="positive"):
        distribution.tempered(0)
