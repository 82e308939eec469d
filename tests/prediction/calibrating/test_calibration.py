"""The saved object: intervals of held-out scores, and files that are none."""

import json
import math

import numpy as np
import pytest
import torch

from raft_peft import GridDistribution, RegressionPredictor
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.calibrating.label_map import AffineMap, IsotonicMap

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
        ({"kind": "wide"}, "intervals are 'wide', which is none of constant, adaptive, quantiles"),
        ({"kind": "adaptive"}, "intervals are adaptive, and it has no scores for them"),
        ({"kind": "quantiles", "spreads": [0.5]}, "intervals are quantiles, and it has no scores for them"),
        ({"spreads": [-0.5]}, "spread -0.5 is negative"),
        ({"tails": [1.5]}, "tail 1.5 is above 1"),
        ({"tails": [0.5, 0.5]}, "2 tails for 1 errors"),
        ({"groups": ["a", "b"]}, "groups are not a list of one name for each error"),
        ({"groups": [1]}, "groups are not a list of one name for each error"),
        ({"group_column": 1}, "group column 1 is not the name of one"),
        (
            {"label_map": {"kind": "affine", "slope": 1.0, "intercept": 0.0}},
            "of a map and its errors it has one alone",
        ),
        ({"label_map": {"kind": "cubic"}}, "is not one of affine, isotonic"),
        ({"label_map": {"kind": "affine", "slope": None, "intercept": 0}}, "is not of finite numbers"),
        ({"label_map": {"kind": "affine", "slopes": 1.0}}, "affine map holds kind, slopes"),
        ({"label_map": {"kind": "isotonic", "predictions": [2, 1], "labels": [1, 2]}}, "predictions .* fall"),
        ({"label_map": {"kind": "isotonic", "predictions": [1], "labels": [1, 2]}}, "as many predictions as labels"),
        ({"grid": "12"}, "grid are not a list of numbers"),
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


# Grid 1, 2, 3. The knots are 1, 1.5, 2.5, 3, where 0.2, 0.5 and 0.3 are cumulated to 0.1, 0.2, 0.7 and 0.85.
DISTRIBUTION = GridDistribution(torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([1.0, 2.0, 3.0]))


def test_adaptive_intervals_by_hand():
    errors, spread = (0.1, 0.3, 0.4, 0.5), (0.2, 0.1, 0.1, 0.5)
    found = Calibration(errors, 0, 5, None, {}, spreads=spread, mapped_errors=(0, 0, 0, 1.0), kind="adaptive")
    # 0.5, 3, 4 and 1 spreads; rank 2 of 5 places at 0.4, 4 at 0.8
    assert [found.half_width(level) for level in (0.4, 0.8)] == pytest.approx([1, 4])
    assert found.half_width(0.8, mapped=True) == pytest.approx(2)
    # The mean is 2.1, the variance 0.2 x 1.21 + 0.5 x 0.01 + 0.3 x 0.81 = 0.49, and 1 / 12 is that of rounding.
    spread = np.sqrt(0.49 + 1 / 12)
    low, high = found.intervals(np.array([2.0]), 0.4, DISTRIBUTION)
    assert (low[0], high[0]) == (pytest.approx(2 - spread), pytest.approx(2 + spread))
    low, high = found.intervals(np.array([2.0]), 0.8, DISTRIBUTION)
    # Beyond the range, at whose ends they are cut off.
    assert (low[0], high[0]) == (0, 5)


def test_intervals_of_quantiles_by_hand():
    found = Calibration((0.1, 0.1, 0.2, 0.3), 0, 5, None, {}, tails=(0.9, 0.3, 0.6, 0.0), kind="quantiles")
    # Rank 2 of 5 places at 0.4: the second largest tail. Rank 3 at 0.6.
    assert [found.tail(level) for level in (0.2, 0.4, 0.6, 0.8)] == [0.9, 0.6, 0.3, 0.0]
    low, high = found.intervals(np.array([2.0]), 0.4, DISTRIBUTION)
    # 0.3 below is reached a fifth of the way from 1.5 to 2.5; 0.3 above, which is 0.7 below, at 2.5
    assert (low[0], high[0]) == (pytest.approx(1.7), pytest.approx(2.5))
    low, high = found.intervals(np.array([2.0]), 0.6, DISTRIBUTION)
    # 0.15 is half way from 1 to 1.5; 0.85 is the end of the grid
    assert (low[0], high[0]) == (pytest.approx(1.25), pytest.approx(3.0))
    # A label was beyond all probability, so that the interval reaches as far as labels do.
    assert [end[0] for end in found.intervals(np.array([2.0]), 0.8, DISTRIBUTION)] == [0, 5]


def test_groups_are_covered_by_themselves():
    errors, groups = [0.1, 0.2, 0.3, 1.0, 2.0, 3.0], ["a"] * 3 + ["b"] * 3
    found = Calibration(tuple(errors), 0, 9, None, {}, groups=tuple(groups))
    # ceil(4 x 0.5) = 2 of each
    low, high = found.intervals(np.array([4.0, 4.0]), 0.5, groups=["b", "a"])
    assert (high - low).tolist() == pytest.approx([4, 0.4])
    with pytest.raises(
        ValueError, match=r"3 held-out rows of the group 'a' cannot warrant.* 0.8: calibrate on 4 rows"
    ):
        found.intervals(np.array([4.0]), 0.8, groups=["a"])
    with pytest.raises(ValueError, match="calibrated on the groups 'a', 'b', and not on 'c'"):
        found.intervals(np.array([4.0]), 0.5, groups=["c"])
    with pytest.raises(ValueError, match="groups 'a', 'b', so `groups` must name that of each row"):
        found.intervals(np.array([4.0]), 0.5)


def test_what_is_saved_is_read_back(tmp_path):
    for learned in (AffineMap(2.0, -1.0), IsotonicMap((1.0, 2.5), (0.0, 4.0)), None):
        found = Calibration(
            (0.1, 0.3),
            0.0,
            5.0,
            1.5,
            {"method": "raft"},
            spreads=(0.5, 0.75),
            tails=(0.25, 0.5),
            kind="adaptive",
            label_map=learned,
            mapped_errors=None if learned is None else (0.2, 0.1),
            groups=("a", "b"),
            group_column="topic",
            grid=(1.0, 2.0),
            mean_widths={"constant": 0.6, "adaptive": 0.5},
        )
        found.save(tmp_path)
        assert Calibration.load(tmp_path / "calibration.json") == found
