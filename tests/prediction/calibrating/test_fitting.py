"""From held-out rows to a calibration that covers as often as it promises."""

import logging
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from raft_peft import GridDistribution, RegressionPredictor
from raft_peft.data.ratings import Ratings
from raft_peft.methods import MethodSettings
from raft_peft.prediction.calibrating.fitting import calibration_of, usual_kind

PROMPTS = [f"Rate item {index} from 0 to 4, the score is" for index in range(30)]
LABELS = [index % 5 for index in range(30)]
GRID = np.arange(1, 5.1, 0.5)


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


def uneven_rows(draw, rows):
    """Labels whose spread differs eightfold from row to row, and a distribution that knows it, on 1 to 5 in halves."""
    mean, spread = draw.uniform(1.5, 4.5, rows), np.exp(draw.uniform(math.log(0.15), math.log(1.2), rows))
    labels = np.clip(mean + spread * draw.standard_normal(rows), 1, 5)
    logits = -((GRID - mean[:, None]) ** 2) / (2 * spread[:, None] ** 2)
    distribution = GridDistribution(
        torch.tensor(logits, dtype=torch.float32).log_softmax(-1), torch.tensor(GRID, dtype=torch.float32)
    )
    return labels, mean, distribution, spread


def measured(kind, *, on_grid=False, draws=40):
    """Mean coverage and width, and the coverage of the rows of the widest spread, over draws of 200 held-out rows."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        labels, mean, distribution, spread = uneven_rows(draw, 500)
        if on_grid:
            labels = np.clip(np.round(2 * labels) / 2, 1, 5)
        held = GridDistribution(distribution.log_probs[:200], distribution.values)
        new = GridDistribution(distribution.log_probs[200:], distribution.values)
        calibration = calibration_of(mean[:200], labels[:200], held, GRID, {}, kind=kind, round_to_grid=on_grid)
        low, high = calibration.intervals(mean[200:], 0.9, new)
        inside = (low <= labels[200:]) & (labels[200:] <= high)
        wide = spread[200:] > 0.6
        found.append((inside.mean(), (high - low).mean(), inside[wide].mean()))
    return np.mean(found, axis=0)


def test_intervals_that_follow_the_distribution_cover_as_promised_and_are_narrower():
    constant = measured("constant")
    assert 0.89 < constant[0] < 0.92
    for found in map(measured, ("adaptive", "quantiles")):
        assert 0.89 < found[0] < 0.92
        assert found[1] < 0.9 * constant[1]
        # Where labels are spread widely, an interval of one width covers too few.
        assert constant[2] < 0.8 < found[2]


def test_adaptive_intervals_cost_little_where_the_distribution_says_nothing():
    """Its mean is right, and its shape is drawn: half of the probability anywhere between the mean and the ends."""
    draw = np.random.default_rng(0)
    labels, mean, distribution, _ = uneven_rows(draw, 2000)
    ends = np.zeros((2000, len(GRID)))
    ends[:, -1] = (mean - 1) / 4
    ends[:, 0] = 1 - ends[:, -1]
    share = draw.uniform(0, 1, (2000, 1))
    shapeless = torch.tensor(share * ends + (1 - share) * distribution.probs.numpy()).float().log()
    widths = calibration_of(mean, labels, GridDistribution(shapeless, distribution.values), GRID, {}).mean_widths
    assert widths["adaptive"] < 1.2 * widths["constant"]
    assert widths["quantiles"] > 1.3 * widths["constant"]


@pytest.mark.parametrize("kind", ["constant", "adaptive", "quantiles"])
def test_rounding_to_the_grid_costs_no_coverage(kind):
    coverage, width, _ = measured(kind, on_grid=True)
    assert coverage > 0.89
    draw = np.random.default_rng(1)
    labels, mean, distribution, _ = uneven_rows(draw, 300)
    labels = np.round(2 * labels) / 2
    plain, rounded = (
        calibration_of(mean, labels, distribution, GRID, {}, kind=kind, round_to_grid=on_grid)
        for on_grid in (False, True)
    )
    (low, high), (first, last) = (found.intervals(mean, 0.9, distribution) for found in (plain, rounded))
    assert np.isin(first, GRID).all() and np.isin(last, GRID).all()
    held = (low <= labels) & (labels <= high)
    assert (held <= ((first <= labels) & (labels <= last))).all()
    assert width < (high - low).mean()


def test_each_group_is_covered_by_itself():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(100):
        groups = np.array(["sure", "unsure"] * 100)
        errors = draw.standard_normal(200) * np.where(groups == "sure", 0.2, 2.0)
        predictions = draw.uniform(20, 30, 200)
        calibration = calibration_of(predictions, predictions + errors, None, [0, 50], {}, groups=groups.tolist())
        together = calibration_of(predictions, predictions + errors, None, [0, 50], {})
        new = draw.standard_normal(200) * np.where(groups == "sure", 0.2, 2.0)
        high = calibration.intervals(np.full(200, 25.0), 0.9, groups=groups.tolist())[1] - 25
        found.append(
            [
                *(np.mean((np.abs(new) <= high)[groups == name]) for name in ("sure", "unsure")),
                np.mean((np.abs(new) <= together.half_width(0.9))[groups == "unsure"]),
            ]
        )
    sure, unsure, unsure_together = np.mean(found, axis=0)
    assert 0.89 < sure < 0.93 and 0.89 < unsure < 0.93
    assert unsure_together < 0.83


def test_small_groups_are_said(caplog):
    predictions = np.arange(12.0)
    with caplog.at_level(logging.WARNING):
        calibration_of(predictions, predictions, None, [0, 12], {}, groups=["a"] * 9 + ["b"] * 3)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("The group 'b' has 3 held-out rows, enough for intervals of level 0.75 at most")


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_intervals_around_mapped_predictions_cover_as_promised(kind):
    """A judge that gives 2 to 3.5 for labels from 1 to 5; 40 rows for the map and its errors."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(60):
        truth = draw.uniform(1, 5, 240)
        predictions = 2 + 0.3 * truth + 0.2 * draw.standard_normal(240)
        labels = np.clip(truth + 0.4 * draw.standard_normal(240), 1, 5)
        calibration = calibration_of(predictions[:40], labels[:40], None, [1, 5], {}, label_map=kind)
        mapped = calibration.mapped(predictions[40:])
        low, high = calibration.intervals(mapped, 0.9, mapped=True)
        inside = (low <= labels[40:]) & (labels[40:] <= high)
        errors = np.abs(np.stack([predictions[40:], mapped]) - labels[40:])
        found.append([inside.mean(), *errors.mean(1)])
    coverage, before, after = np.mean(found, axis=0)
    assert 0.885 < coverage < 0.925
    assert after < 0.8 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a", "b"]}, "`groups` has 2 names for 3 prompts"),
        ({"label_map": "cubic"}, "`label_map='cubic'` does not exist. Use one of affine, isotonic"),
        ({"round_to_grid": True}, "1 of the 3 labels are not numbers of the grid, as 1.5 of row 1"),
    ],
)
def test_what_does_not_go_with_the_rows(options, message):
    with pytest.raises(ValueError, match=message):
        calibration_of(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.5, 3.0]), None, [1, 2, 3], {}, **options)


def test_a_row_without_probability_on_the_grid():
    nothing = GridDistribution(torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="No number of the grid has any probability in row 1"):
        calibration_of(np.array([1.0, 1.0]), np.array([1.0, 1.0]), nothing, [1, 2], {})


def test_the_usual_kind_of_intervals():
    kinds = [
        usual_kind(MethodSettings(**settings))
        for settings in ({}, {"method": "rail"}, {"method": "crps"}, {"distribution_loss": "soft_ce"})
    ]
    assert kinds == ["constant", "constant", "adaptive", "adaptive"]


def test_a_temperature_is_of_each_rating_and_errors_are_of_their_mean():
    """All rows say 3 with a half, and 1 and 5 with a quarter each. So do the ratings of all, whose mean is 3."""
    probs = torch.tensor([[0.25, 0.5, 0.25]]).repeat(8, 1)
    distribution = GridDistribution(probs.log(), torch.tensor([1.0, 3.0, 5.0]))
    predictions, labels = np.full(8, 3.0), np.full(8, 3.0)
    ratings = [Ratings.of([1, 3, 3, 5])] * 8
    of_ratings = calibration_of(predictions, labels, distribution, [1, 3, 5], {}, ratings=ratings)
    of_labels = calibration_of(predictions, labels, distribution, [1, 3, 5], {})
    assert of_ratings.temperature == pytest.approx(1, rel=1e-2)
    assert of_labels.temperature < 0.1
    assert of_ratings.errors == of_labels.errors
