import json
import logging

import pytest
from datasets import Dataset

from raft_peft.data.limits import ModelLimits
from raft_peft.data.questions.collator import QuestionCollator
from raft_peft.data.questions.dataset import as_question_dataset, encode_question_dataset
from raft_peft.data.questions.encoder import QuestionEncoder

TONE = {"type": "score", "instructions": "How polite?", "criteria": ["rude", "plain", "kind"]}
TEAM = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": None, "it": None}}
ROWS = [
    {"state": {"a": 1}, "questions": {"tone": TONE, "team": TEAM}, "targets": {"tone": 0.5, "team": "it"}},
    {"state": "Hi", "questions": {"tone": TONE}, "targets": {"tone": "kind"}},
]


@pytest.fixture(scope="module")
def encoder(smollm2_tokenizer):
    return QuestionEncoder(smollm2_tokenizer)


def test_rows_as_they_are_encoded(encoder):
    encoded = encode_question_dataset(ROWS, "train", encoder)
    assert encoded["id"][:] == [["tone", "team"], ["tone"]]
    assert encoded["type"][:] == [["score", "choice"], ["score"]]
    assert encoded["label"][:] == [[0.5, 1.0], [2.0]]
    assert encoded["option_values"][:] == [[[0, 1, 2], [0, 1]], [[0, 1, 2]]]
    assert {len(row["input_ids"]) for row in encoded} == {1, 2}
    batch = QuestionCollator(pad_token_id=0)(list(encoded))
    assert batch["labels"].tolist() == [0.5, 1.0, 2.0]
    assert batch["is_choice"].tolist() == [False, True, False]
    # The same from the Hub's form, and from a dataset in memory.
    on_hub = [{name: json.dumps(value) for name, value in row.items()} for row in ROWS]
    assert encode_question_dataset(Dataset.from_list(on_hub), "train", encoder)[:] == encoded[:]


def test_targets_may_be_missing(encoder):
    rows = [ROWS[0], {**ROWS[0], "targets": {"team": "billing"}}]
    assert encode_question_dataset(rows, "train", encoder)["id"][:] == [["tone", "team"], ["team"]]
    every = encode_question_dataset(rows, "test", encoder, require_targets=False)
    assert every["id"][:] == [["tone", "team"], ["tone", "team"]]
    assert "label" not in every.column_names
    assert "label" in encode_question_dataset(ROWS, "test", encoder, require_targets=False).column_names


def test_what_cannot_be_trained_on(encoder):
    with pytest.raises(ValueError, match="No row of the train dataset has a target for the question 'tone'"):
        encode_question_dataset([{**ROWS[0], "targets": {"team": "it"}}], "train", encoder)
    with pytest.raises(ValueError, match="row 1: no question of 'tone' has a target"):
        encode_question_dataset([ROWS[0], {**ROWS[1], "targets": None}], "train", encoder)
    with pytest.raises(ValueError, match=r"The train dataset cannot be read. 1 row\(s\) .*\n  row 1: question 'tone'"):
        encode_question_dataset([ROWS[0], {**ROWS[1], "targets": {"tone": 4}}], "train", encoder)
    for nothing in ([], Dataset.from_list([])):
        with pytest.raises(ValueError, match="The train dataset is empty"):
            as_question_dataset(nothing, "train")
    with pytest.raises(ValueError, match=r"row 0: the prompt with its number has \d+ tokens, and the model has 20"):
        encode_question_dataset(ROWS, "train", encoder, limits=ModelLimits(positions=20))


def test_states_that_are_cut_are_told(smollm2_tokenizer, caplog):
    rows = [{**ROWS[1], "state": "word " * 300}, ROWS[1]]
    with caplog.at_level(logging.WARNING):
        encode_question_dataset(rows, "train", QuestionEncoder(smollm2_tokenizer, max_length=100))
    assert "1 of 2 states of the train dataset are longer than `max_length=100`" in caplog.text


def test_a_stream_is_encoded_as_it_is_read(encoder):
    stream = as_question_dataset(ROWS, "train").to_iterable_dataset()
    assert [row["id"] for row in encode_question_dataset(stream, "train", encoder)] == [["tone", "team"], ["tone"]]
    unlabelled = encode_question_dataset(stream, "test", encoder, require_targets=False)
    assert "label" not in next(iter(unlabelled))
