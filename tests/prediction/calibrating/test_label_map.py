"""Maps from predictions to labels."""

import logging

import numpy as np
import pytest

from raft_peft.prediction.calibrating.label_map import AffineMap, IsotonicMap, cross_fitted_errors, fitted


def test_affine_by_hand():
    # Through (1, 2), (2, 2), (3, 5): slope 3 / 2, and the means 2 and 3
    found = fitted("affine", np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert found == AffineMap(pytest.approx(1.5), pytest.approx(0.0))
    assert found(np.array([4.0, np.nan])) == pytest.approx([6, np.nan], nan_ok=True)


def test_isotonic_by_hand():
    # 3 and 1 fall, so both are their mean
    found = fitted("isotonic", np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 1.0, 4.0]))
    assert found == IsotonicMap((1, 2, 3, 4), (1, 2, 2, 4))
    assert found(np.array([0, 1.5, 2.5, 3.5, 9, np.nan])) == pytest.approx([1, 1.5, 2, 3, 4, np.nan], nan_ok=True)


def test_errors_are_of_rows_that_the_map_did_not_see():
    # Each of three rows is its own fold, and lies off the line through the two others.
    errors = cross_fitted_errors("affine", np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0]), lambda mapped: mapped)
    # (2, 3), (3, 3) give 3 for 1; (1, 1), (3, 3) give 2 for 2; (1, 1), (2, 3) give 5 for 3
    assert errors.tolist() == pytest.approx([2, 1, 2])
    cut = cross_fitted_errors(
        "affine", np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 3.0]), lambda m: np.clip(m, 0, 4)
    )
    assert cut.tolist() == pytest.approx([2, 1, 1])
    # Two predictions the same in a fold: their mean label.
    same = cross_fitted_errors("affine", np.array([1.0, 1.0, 3.0]), np.array([1.0, 3.0, 3.0]), lambda mapped: mapped)
    assert same[2] == pytest.approx(1)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([1.0, 2.0], "needs 3 rows or more, and a few dozen to be of use.* There are 2. Calibrate on more rows"),
        ([2.5, 2.5, 2.5], "All 3 predictions are 2.5, so `label_map='affine'` has nothing to learn from"),
    ],
)
def test_rows_that_give_no_map(predictions, message):
    with pytest.raises(ValueError, match=message):
        fitted("affine", np.array(predictions), np.arange(len(predictions)))


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_labels_that_fall_are_said(kind, caplog):
    with caplog.at_level(logging.WARNING):
        fitted(kind, np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert "labels do not rise with the predictions" in caplog.text


def test_a_map_never_falls(caplog):
    predictions, labels = np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 0.0])
    for kind in ("affine", "isotonic"):
        with caplog.at_level(logging.WARNING):
            found = fitted(kind, predictions, labels)
        assert found(np.array([0.0, 9.0])) == pytest.approx([3, 3])
        assert f"so `label_map={kind!r}` gives every row the mean label" in caplog.text
