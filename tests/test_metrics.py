import math

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution, metrics
from raft_peft.losses import CRPS
from raft_peft.losses.label_shares import beyond_grid, two_hot


def test_by_hand():
    # errors 1, -1, 2, 0: squares sum to 6, absolutes to 4
    prediction, target = [2, 1, 5, 4], [1, 2, 3, 4]
    assert metrics.rmse(prediction, target) == pytest.approx(math.sqrt(6 / 4))
    assert metrics.mae(prediction, target) == 1
    # deviations -1, -2, 2, 1 and -1.5, -0.5, 0.5, 1.5: products sum to 5, squares to 10 and 5
    assert metrics.pearson(prediction, target) == pytest.approx(5 / math.sqrt(50))
    # the mean of the targets is 2.5, their squared deviations sum to 5, and the errors' to 6
    assert metrics.rmse_of_mean(target) == pytest.approx(math.sqrt(5 / 4))
    assert metrics.r2(prediction, target) == pytest.approx(1 - 6 / 5)
    assert metrics.r2([2.5] * 4, target) == 0
    # ranks 2, 1, 4, 3 and 1, 2, 3, 4: rank differences 1, -1, 1, -1
    assert metrics.spearman(prediction, target) == pytest.approx(1 - 6 * 4 / (4 * 15))

    # of the 6 pairs, the 2 of neighbours 1, 2 and 3, 4 are the other way around
    assert metrics.kendall(prediction, target) == pytest.approx((4 - 2) / 6)


def test_agreement_beyond_chance_by_hand():
    # Rounded 1, 2, 2, 3 against 1, 2, 3, 3: one squared disagreement of 1 among 4.
    # By chance, each pair of numbers has the product of their shares, 1/4, 1/2, 1/4 and 1/4, 1/4, 1/2.
    predicted, true = [1.2, 2.4, 1.5, 9.0], [1, 2, 3, 3]
    shares = np.outer([0.25, 0.5, 0.25], [0.25, 0.25, 0.5])
    by_chance = sum(shares[i, j] * (i - j) ** 2 for i in range(3) for j in range(3))
    assert metrics.qwk(predicted, true, [3, 1, 2]) == pytest.approx(1 - 0.25 / by_chance)
    assert math.isnan(metrics.qwk([1, 1], [1, 1], [1, 2]))
    assert math.isnan(metrics.qwk([1, math.nan], [1, 2], [1, 2]))


@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman, metrics.kendall])
def test_constant_predictions_have_no_correlation(metric):
    with pytest.warns(UserWarning, match="predictions are all 2"):
        assert math.isnan(metric([2, 2, 2], [1, 2, 3]))
    with pytest.warns(UserWarning, match="targets are all 2"):
        assert math.isnan(metric([1, 2, 3], [2, 2, 2]))


def test_intervals():
    # the ends belong to an interval: 1 and 2 are inside theirs, 3 is above, 4 below
    found = metrics.interval_metrics(low=[1, 1, 1, 5], high=[2, 2, 2, 9], target=[1, 2, 3, 4])
    assert found == {"coverage": 0.5, "mean_width": (1 + 1 + 1 + 4) / 4}


class TestDistributions:
    """Two rows over the numbers 4, 1, 2, in this order, with half of their mass off the grid."""

    LOG_PROBS = np.log([[0.1, 0.1, 0.3], [0.25, 0.2, 0.05]])
    VALUES = (4, 1, 2)

    def metrics(self, shares, rated=None):
        return metrics.distribution_metrics(self.LOG_PROBS, self.VALUES, shares, rated)

    def test_by_hand(self):
        # Of the numbers 1, 2, 4 the rows say 0.2, 0.6, 0.2 and 0.4, 0.1, 0.5; the labels are 2 and 3.
        found = self.metrics([[0, 0, 1], [0.5, 0, 0.5]])
        # F - 1[z >= 2] is 0.2 over a length of 1 and -0.2 over 2; in the second row 0.4, 0.5 over 1 and -0.5 over 1.
        assert found["crps"] == pytest.approx((0.04 + 0.08 + 0.16 + 0.25 + 0.25) / 2)
        assert found["nll"] == pytest.approx(-(math.log(0.6) + 0.5 * math.log(0.5) + 0.5 * math.log(0.1)) / 2)
        # P(Y <= 1) is 0.2 and 0.4, and no label is; P(Y <= 2) is 0.8 and 0.5, and 1 and 0.5 are. A bin a row.
        assert found["calibration_error"] == pytest.approx(((0.2 + 0.4) / 2 + (0.2 + 0) / 2) / 2)
        assert (found["central_90_coverage"], found["central_90_width"]) == (1, 3)
        assert "rater_distance" not in found

    def test_rows_of_a_bin_make_up_for_each_other(self):
        assert metrics.distribution_metrics(np.log([[0.5, 0.5]] * 2), [0, 1], [[1, 0], [0, 1]])[
            "calibration_error"
        ] == pytest.approx(0)

    def test_the_distance_is_of_rows_with_ratings_alone(self):
        shares = [[0.5, 0.5, 0], [0, 0, 1]]
        # |0.2 - 0.5| + |0.6 - 0| + |0.2 - 0.5|, half of it
        assert self.metrics(shares, rated=[1, 0])["rater_distance"] == pytest.approx(0.6)
        assert "rater_distance" not in self.metrics(shares, rated=[0, 0])

    def test_a_narrow_distribution_has_a_narrow_interval(self):
        found = metrics.distribution_metrics(np.log([[0.03, 0.95, 0.02]]), [1, 2, 4], [[0.5, 0.5, 0]])
        assert (found["central_90_coverage"], found["central_90_width"]) == (0.5, 0)

    def test_crps_is_that_of_the_loss(self):
        random = np.random.default_rng(0)
        values = torch.tensor([3.0, -1.0, 0.5, 7.0])
        log_probs = torch.tensor(random.normal(size=(20, 4))).float()
        labels = torch.tensor(random.uniform(-3, 9, size=20)).float()
        expected = CRPS()(GridDistribution(log_probs, values), labels).mean().item()
        beyond = beyond_grid(labels, values)
        assert beyond.max() > 1
        found = metrics.distribution_metrics(log_probs, values, two_hot(labels, values), beyond=beyond)
        assert found["crps"] == pytest.approx(expected, rel=1e-5)


def test_one_row_and_nan():
    with pytest.warns(UserWarning, match="undefined"):
        found = metrics.regression_metrics([2], [2])
    assert math.isnan(found["pearson"]) and math.isnan(found["r2"]) and found["rmse_of_mean"] == 0
    assert math.isnan(metrics.pearson([1, np.nan, 2], [1, 2, 3]))


@pytest.mark.parametrize(("prediction", "target"), [([], []), ([1, 2], [1]), ([[1], [2]], [1, 2])])
def test_shapes_that_do_not_fit(prediction, target):
    with pytest.raises(ValueError, match="same shape"):
        metrics.rmse(prediction, target)
