import math

import numpy as np
import pytest

from raft_peft import metrics


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


@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman])
def test_constant_predictions_have_no_correlation(metric):
    with pytest.warns(UserWarning, match="predictions are all 2"):
        assert math.isnan(metric([2, 2, 2], [1, 2, 3]))
    with pytest.warns(UserWarning, match="targets are all 2"):
        assert math.isnan(metric([1, 2, 3], [2, 2, 2]))


def test_intervals():
    # the ends belong to an interval: 1 and 2 are inside theirs, 3 is above, 4 below
    found = metrics.interval_metrics(low=[1, 1, 1, 5], high=[2, 2, 2, 9], target=[1, 2, 3, 4])
    assert found == {"coverage": 0.5, "mean_width": (1 + 1 + 1 + 4) / 4}


def test_one_row_and_nan():
    with pytest.warns(UserWarning, match="undefined"):
        found = metrics.regression_metrics([2], [2])
    assert math.isnan(found["pearson"]) and math.isnan(found["r2"]) and found["rmse_of_mean"] == 0
    assert math.isnan(metrics.pearson([1, np.nan, 2], [1, 2, 3]))


@pytest.mark.parametrize(("prediction", "target"), [([], []), ([1, 2], [1]), ([[1], [2]], [1, 2])])
def test_shapes_that_do_not_fit(prediction, target):
    with pytest.raises(ValueError, match="same shape"):
        metrics.rmse(prediction, target)
