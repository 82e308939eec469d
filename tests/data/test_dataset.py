import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from raft_peft import NumberGrid
from raft_peft.data.dataset import encode_dataset
from raft_peft.data.prompts import PromptEncoder
from raft_peft.methods import METHODS


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(tokenizer, NumberGrid(range(5)), max_length=16)


def encode(dataset, encoder, **options):
    return encode_dataset(dataset, "train", encoder, **{"label_column": "label", "method": METHODS["raft"], **options})


def test_whole_labels_in_front_do_not_make_the_rest_integers(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1.0}] * 1500 + [{"prompt": "b", "label": 2.5}])
    assert encode(dataset, encoder)["label"][1500] == 2.5


def test_integer_and_class_labels_become_floats(encoder):
    features = Features({"prompt": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = Dataset.from_list([{"prompt": "a", "label": 1}], features=features)
    assert encode(dataset, encoder).features["label"] == Value("float64")


def test_other_columns_are_dropped_and_another_label_column_read(encoder, rows):
    dataset = Dataset.from_list([{**row, "label": 9, "stars": 3.5, "id": "x"} for row in rows])
    encoded = encode(dataset, encoder, label_column="stars")
    assert sorted(encoded.column_names) == ["grid_token_ids", "input_ids", "label"]
    assert set(encoded["label"]) == {3.5}


def test_streams_are_encoded_as_they_are_read(encoder, rows):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert list(encode(stream, encoder)) == list(encode(Dataset.from_list(rows), encoder))


def test_streams_say_once_that_rows_are_cut_and_labels_out_of_reach(encoder, caplog):
    rows = [{"prompt": "the item " * 30, "label": 9.0}] * 3000
    stream = encode(Dataset.from_list(rows).to_iterable_dataset(), encoder)
    with caplog.at_level(logging.WARNING):
        assert len(list(stream)) == 3000
    assert caplog.text.count("lost their beginning") == 1
    assert caplog.text.count("outside what this grid can express") == 1


def test_rows_without_labels_can_be_predicted(encoder):
    encoded = encode(Dataset.from_list([{"prompt": "a"}]), encoder, require_label=False)
    assert encoded.column_names == ["input_ids", "grid_token_ids"]


def test_an_empty_label_column_is_none_in_prediction_and_an_error_in_training(encoder):
    features = Features({"prompt": Value("string"), "label": Value("float64")})
    dataset = Dataset.from_dict({"prompt": ["a", "b"], "label": [None, None]}, features=features)
    assert encode(dataset, encoder, require_label=False).column_names == ["input_ids", "grid_token_ids"]
    with pytest.raises(ValueError, match="row 0: the label is missing"):
        encode(dataset, encoder)


def test_the_row_number_counts_from_the_beginning_of_the_dataset(encoder):
    dataset = Dataset.from_list([{"prompt": "a", "label": 1.0}] * 1200 + [{"prompt": "a", "label": float("nan")}])
    with pytest.raises(ValueError, match="row 1200: the label is nan"):
        encode(dataset, encoder)


def test_cut_rows_are_counted(encoder, caplog):
    dataset = Dataset.from_list([{"prompt": "the item " * 30, "label": 1.0}, {"prompt": "short", "label": 1.0}])
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder)
    assert "1 of the 2 prompts of the train dataset are longer than max_length=16" in caplog.text


@pytest.mark.parametrize(("renormalize", "outside"), [(False, 2), (True, 2)])
def test_labels_out_of_reach_are_counted(encoder, caplog, renormalize, outside):
    dataset = Dataset.from_list([{"prompt": "a", "label": label} for label in (-1.0, 0.0, 4.0, 7.5)])
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder, renormalize=renormalize)
    assert f"{outside} of the 4 labels of the train dataset (-1 to 7.5) lie outside" in caplog.text


def test_renormalised_predictions_cannot_reach_zero(tokenizer, caplog):
    dataset = Dataset.from_list([{"prompt": "a", "label": 0.5}])
    encoder = PromptEncoder(tokenizer, NumberGrid([1, 2]))
    with caplog.at_level(logging.WARNING):
        encode(dataset, encoder)
        assert not caplog.text
        encode(dataset, encoder, renormalize=True)
    assert "what this grid can express, 1 to 2" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 1.0}, "neither `prompt` nor `input_ids`. Rename"),
        ({"prompt": "a", "score": 1.0}, "no label in 'label'. Rename"),
        ({"prompt": "a", "label": 1.0, "image": "x"}, "has images"),
    ],
)
def test_datasets_that_cannot_be_used(encoder, row, message):
    with pytest.raises(ValueError, match=message):
        encode(Dataset.from_list([row]), encoder)


def test_an_empty_dataset(encoder):
    with pytest.raises(ValueError, match="train dataset is empty"):
        encode(Dataset.from_dict({"prompt": [], "label": []}), encoder)
