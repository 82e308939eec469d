"""Intervals and temperatures from held-out rows."""

import json
import logging
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from raft_peft import GridDistribution, RegressionPredictor
from raft_peft.prediction.calibration import Calibration, calibration_of, fitted_temperature

PROMPTS = [f"Rate item {index} from 0 to 4, the score is" for index in range(30)]
LABELS = [index % 5 for index in range(30)]


def calibration(errors, low=0.0, high=5.0):
    return Calibration(tuple(sorted(errors)), low, high, None, {})


def test_by_hand():
    found = calibration([0.1, 0.4, 0.2, 0.3])
    # ranks of 5 places: 0.5 -> ceil(2.5) = 3, 0.6 -> 3, 0.61 -> 4, 0.8 -> 4
    assert [found.half_width(level) for level in (0.2, 0.5, 0.6, 0.61, 0.8)] == [0.1, 0.3, 0.3, 0.4, 0.4]
    low, high = found.intervals(np.array([1.0, 4.9, 0.1, np.nan]), 0.8)
    assert low == pytest.approx([0.6, 4.5, 0.0, np.nan], nan_ok=True)
    assert high == pytest.approx([1.4, 5.0, 0.5, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match=r"4 held-out rows.*calibrate on 9 rows or more, or ask for 0.8"):
        found.half_width(0.9)
    for level in (0, 1, -1, 90):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            found.half_width(level)


@pytest.mark.parametrize("rows", [19, 100])
def test_covers_as_often_as_promised(rows):
    """Over draws of the held-out rows, the share covered is between level and level + 1 / (rows + 1)."""
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(4000):
        labels, predictions = draw.uniform(0, 5, (2, rows + 1))
        found = calibration_of(predictions[:-1], labels[:-1], None, [0, 5], {})
        low, high = found.intervals(predictions[-1:], 0.9)
        covered.append(low[0] <= labels[-1] <= high[0])
    assert 0.9 - 0.01 <= np.mean(covered) <= 0.9 + 1 / (rows + 1) + 0.01


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


def test_saved_beside_the_model(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictor = RegressionPredictor(tiny_llama, tokenizer, range(5))
    with pytest.raises(ValueError, match=r"not calibrated.*predictor.calibrate"):
        predictor.predict(PROMPTS, interval=0.9)
    predictor.calibrate(PROMPTS, LABELS).save(tmp_path)
    loaded = RegressionPredictor.from_pretrained(tmp_path, range(5))
    predictions, low, high = loaded.predict(PROMPTS, interval=0.9)
    assert predictions == pytest.approx(predictor.predict(PROMPTS), abs=1e-5)
    errors = np.sort(np.abs(predictions - LABELS))
    width = errors[27]  # 31 x 0.9 = 27.9
    assert low == pytest.approx(np.clip(predictions - width, 0, 4), abs=1e-5)
    assert high == pytest.approx(np.clip(predictions + width, 0, 4), abs=1e-5)
    calibrated = loaded.predict_distribution(PROMPTS, calibrated=True)
    assert calibrated.mass.tolist() == pytest.approx([1.0] * 30)
    expected = predictor.predict_distribution(PROMPTS).log_probs / predictor.calibration.temperature
    assert torch.allclose(calibrated.log_probs, expected.log_softmax(-1), atol=1e-4)
    for settings in ({"decision": "median"}, {"grid": [0, 1, 2]}, {"max_length": 9}, {"separator": "\n"}):
        other = RegressionPredictor.from_pretrained(tmp_path, **{"grid": range(5), **settings})
        with pytest.raises(ValueError, match=f"made with another {next(iter(settings))}"):
            other.predict(PROMPTS, interval=0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": []}, "errors are not a list of numbers"),
        ({"errors": 1}, "errors are not a list of numbers"),
        ({"errors": "123"}, "errors are not a list of numbers"),
        ({"errors": [math.nan]}, "error nan is not a finite number"),
        ({"errors": ["1.0"]}, "error '1.0' is not a finite number"),
        ({"errors": [True]}, "error True is not a finite number"),
        ({"errors": [10**400]}, "is not a finite number"),
        ({"errors": [0.5, -3.0]}, "error -3.0 is negative"),
        ({"low": None}, "low None is not a finite number"),
        ({"low": 4}, "range goes from 4 down to 1"),
        ({"temperature": 0}, "temperature 0 is not a finite number above 0"),
        ({"temperature": math.inf}, "temperature inf is not"),
        ({"settings": 3}, "settings are not an object"),
        ({"settings": [["a", 1]]}, "settings are not an object"),
    ],
)
def test_files_that_are_no_calibration(tmp_path, change, message):
    good = {"errors": [0.1], "low": 0, "high": 1, "temperature": None, "settings": {}}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(good))
    assert Calibration.load(path).errors == (0.1,)
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=rf"not a usable calibration: .*{message}.*calibrate again"):
        Calibration.load(path)
    for text in ("", "[]", json.dumps({"errors": [0.1]})):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a usable calibration"):
            Calibration.load(path)


@pytest.mark.parametrize(
    "predictions, labels, message",
    [([], [], "at least one"), ([1.0], [1.0, 2.0], "1 predictions and 2 labels"), ([math.nan], [1.0], "row 0 is nan")],
)
def test_rows_that_cannot_calibrate(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration_of(np.array(predictions), np.array(labels), None, [0, 1], {})


def test_labels_beyond_the_grid_widen_the_range():
    found = calibration_of(np.array([1.0, 1.0]), np.array([-2.0, 7.0]), None, [0, 5], {})
    assert (found.low, found.high, found.temperature) == (-2, 7, None)


def test_labels_are_read_as_those_of_a_column(tiny_llama, tokenizer, caplog):
    predictor = RegressionPredictor(tiny_llama, tokenizer, [1, 2, 3, 4, 5])
    expected = predictor.calibrate(PROMPTS, LABELS).errors
    with caplog.at_level(logging.WARNING):
        for labels in (
            torch.tensor(LABELS),
            [Decimal(label) for label in LABELS],
            Dataset.from_dict({"x": LABELS})["x"],
        ):
            assert predictor.calibrate(PROMPTS, labels).errors == expected
    assert "6 of the 30 labels (0 to 4) lie outside the grid's own range, 1 to 5" in caplog.text
    classes = Dataset.from_dict({"x": LABELS}).cast_column("x", ClassLabel(names=["4", "3", "2", "1", "0"]))["x"]
    assert predictor.calibrate(PROMPTS, classes).errors != expected
    for label, message in (
        (True, "label is True"),
        (None, "label is missing"),
        ("x", "'x' is not"),
    ):
        with pytest.raises(ValueError, match=f"row 0: the .*{message}"):
            predictor.calibrate(PROMPTS, [label] * 30)
