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
    labels, ratings = [], []
    rated = [*lists[:1], *rows[1:2]]
    assert len(list(labelled_prompts(rated, labels, predictor.grid, label_column="label", ratings=ratings))) == 2
    assert labels == [row["label"] for row in rows[:2]]
    assert ratings == [Ratings.of(lists[0]["label"]), None]
    of_lists = predictor.calibrate([row["prompt"] for row in rows], [row["label"] for row in lists])
    assert of_lists.errors == predictor.calibrate([row["prompt"] for row in rows], expected.labels).errors
