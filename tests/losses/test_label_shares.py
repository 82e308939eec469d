"""Labels as shares of the grid, against arithmetic by hand and scipy's normal distribution."""

import pytest
import torch
from scipy.stats import norm

from raft_peft.losses.label_shares import gaussian, two_hot


def test_a_label_is_shared_by_its_neighbours_by_their_nearness():
    values = torch.tensor([1.0, 2.0, 5.0])
    labels = torch.tensor([1.0, 1.25, 3.0, 5.0])
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0, 2 / 3, 1 / 3], [0, 0, 1]]
    torch.testing.assert_close(two_hot(labels, values), torch.tensor(expected))


def test_labels_beyond_the_grid_are_at_its_ends():
    assert two_hot(torch.tensor([-3.0, 9.0]), torch.tensor([0.0, 4.0])).tolist() == [[1, 0], [0, 1]]


def test_shares_keep_the_order_of_the_grid():
    labels, values = torch.tensor([1.25, 3.0]), torch.tensor([5.0, 1.0, 2.0])
    expected = two_hot(labels, values.sort().values)[:, [2, 0, 1]]
    torch.testing.assert_close(two_hot(labels, values), expected)
    expected = gaussian(labels, values.sort().values, 0.5)[:, [2, 0, 1]]
    torch.testing.assert_close(gaussian(labels, values, 0.5), expected)


def test_the_mean_of_the_shares_is_the_label():
    values = torch.tensor([-4.0, -1.5, 0.0, 0.1, 7.0])
    labels = torch.linspace(-4, 7, 23)
    torch.testing.assert_close(two_hot(labels, values) @ values, labels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("deviation", [0.1, 0.75, 3.0])
def test_a_gaussian_is_that_of_scipy_between_the_middles_of_the_gaps(deviation):
    values, edges = [1.0, 2.0, 5.0], [0.5, 1.5, 3.5, 6.5]
    below = norm(2.2, deviation).cdf(edges)
    expected = torch.tensor((below[1:] - below[:-1]) / (below[-1] - below[0])).float()
    torch.testing.assert_close(gaussian(torch.tensor([2.2]), torch.tensor(values), deviation)[0], expected)


def test_a_narrow_gaussian_is_the_nearest_number():
    shares = gaussian(torch.tensor([2.2, 1.0, 9.0]), torch.tensor([1.0, 2.0, 5.0]), 1e-3)
    assert shares.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
