"""Rows with labels, whatever holds them, and what is said of them."""

import json
import logging
from decimal import Decimal

import numpy as np
import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from raft_peft import RegressionPredictor
from raft_peft.data.ratings import Ratings
from raft_peft.prediction.evaluation import evaluate_rows, labelled_prompts


@pytest.fixture
def predictor(tiny_llama, tokenizer):
    return RegressionPredictor(tiny_llama, tokenizer, [1, 2, 3, 4, 5])


def test_rows_of_any_holder_are_evaluated_alike(predictor, rows):
    expected = evaluate_rows(predictor, rows)
    as_classes = Features({"prompt": Value("string"), "label": ClassLabel(names=["0", "0.5", "1"])})
    for holder in (
        pandas.DataFrame(rows),
        Dataset.from_list(rows),
        Dataset.from_list(rows).with_format("torch"),
        Dataset.from_list(rows).to_iterable_dataset(),
        [{**row, "label": Decimal(str(row["label"]))} for row in rows],
        [{**row, "label": str(row["label"])} for row in rows],
    ):
        found = evaluate_rows(predictor, holder)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-6)
    three = Dataset.from_dict({"prompt": [row["prompt"] for row in rows[:3]], "label": [2, 0, 1]}, features=as_classes)
    assert evaluate_rows(predictor, three).labels.tolist() == [1, 0, 0.5]


def test_labels_outside_the_grid_are_said(predictor, rows, caplog):
    with caplog.at_level(logging.WARNING):
        evaluate_rows(predictor, [{**row, "label": index % 5} for index, row in enumerate(rows)])
    assert "2 of the 8 labels (0 to 4) lie outside the grid's own range, 1 to 5" in caplog.text


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"label": True}, {}, "row 0: the label is True, and the grid is not 0 and 1"),
        ({"label": None}, {}, "row 0: the label is missing. Fill the column 'label'"),
        ({"completion": "3"}, {"label_column": "stars"}, "and no 'stars': rename one, set `label_column`"),
    ],
)
def test_what_is_no_label(predictor, rows, change, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_rows(predictor, [{**row, **change} for row in rows], **options)


def test_labels_that_are_ratings_count_as_their_mean(predictor, rows):
    expected = evaluate_rows(predictor, rows)
    lists = [{**row, "label": [row["label"] - 1, row["label"] + 1]} for row in rows]
    shares = [{**row, "label": {str(row["label"]): 1.0}} for row in rows]
    texts = [{**row, "label": json.dumps(row["label"])} for row in lists]
    for rated in (lists, shares, texts, pandas.DataFrame(lists), Dataset.from_list(lists).to_iterable_dataset()):
        np.testing.assert_allclose(evaluate_rows(predictor, rated).labels, expected.labels)
    labels = []
    rated = [*lists[:1], *rows[1:2]]
    assert len(list(labelled_prompts(rated, labels, predictor.grid, label_column="label"))) == 2
    assert labels == [Ratings.of(lists[0]["label"]), rows[1]["label"]]


def test_intervals_are_of_the_mean_of_ratings(predictor, rows):
    prompts = [row["prompt"] for row in rows]
    means = predictor.calibrate(prompts, [row["label"] for row in rows])
    lists = [[row["label"] - 1, row["label"] + 1] for row in rows]
    of_lists = predictor.calibrate(prompts, lists)
    assert of_lists == predictor.calibrate(prompts, [Ratings.of(label) for label in lists])
    assert of_lists.errors == means.errors


def test_metrics_of_the_distribution_are_of_each_rating(predictor, rows):
    lists = [{**row, "label": [1, 5]} for row in rows]
    found = evaluate_rows(predictor, lists)
    q = predictor.predict_distribution([row["prompt"] for row in rows]).renormalized().probs.double().numpy()
    # Half of the ratings are at least at every number, so each of the four gaps gives F^2 - F + 1/2.
    below = q.cumsum(-1)[:, :-1]
    assert found.metrics["crps"] == pytest.approx((below**2 - below + 0.5).sum(-1).mean(), abs=1e-5)
    distance = np.abs(q - [0.5, 0, 0, 0, 0.5]).sum(-1).mean() / 2
    assert found.metrics["rater_distance"] == pytest.approx(distance, abs=1e-5)
    assert {"qwk", "kendall", "nll", "calibration_error"} <= set(found.metrics)
    assert "rater_distance" not in evaluate_rows(predictor, rows).metrics
