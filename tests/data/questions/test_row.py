import json

import pytest
from datasets import Dataset

from raft_peft.data.questions.dataset import as_question_rows
from raft_peft.data.questions.row import QuestionRow, holds_questions
from raft_peft.data.ratings import Ratings
from raft_peft.data.row_sources import read_rows

QUESTIONS = {
    "tone": {"type": "score", "instructions": "How polite?", "criteria": ["rude", "plain", "kind"]},
    "spam": {"type": "noul", "instructions": "Is it spam?"},
    "team": {
        "type": "choice",
        "instructions": "Which team?",
        "criteria": {"billing": "payments", "other": "the rest"},
    },
}
ROW = {"state": "Hello", "questions": QUESTIONS, "targets": {"tone": 1.5, "spam": None}, "id": 7}


def test_a_row():
    row = QuestionRow.of(ROW)
    assert row.state == "Hello"
    assert [question.id for question in row.questions] == ["tone", "spam", "team"]
    assert row.targets == {"tone": Ratings((1.5,), (1.0,), 1)}
    assert QuestionRow.of({"state": {"a": None}, "questions": QUESTIONS}).targets == {}
    assert holds_questions(ROW) and not holds_questions({"prompt": "Hello", "questions": None})


@pytest.mark.parametrize(
    "state", ["Hello", '"quoted"', "[1]", {"a": [None, 1.5]}, [{"role": "user", "content": "Hi"}]]
)
def test_a_row_as_json_text(state):
    row = QuestionRow.of(
        {**ROW, "state": state, "targets": {"tone": [0, 1, 1], "team": {"billing": 0.5, "other": 0.5}}}
    )
    assert QuestionRow.of(row.as_json()) == row


def test_the_form_of_the_hub():
    row = {"state": '{"from": "zoë"}', "questions": json.dumps(QUESTIONS), "targets": '{"tone": "kind"}'}
    read = QuestionRow.of(row)
    assert read.state == {"from": "zoë"}
    assert read.targets["tone"].mean == 2
    # A state that is no JSON is a text, as is one that is a number.
    assert [QuestionRow.of({**row, "state": text}).state for text in ("Hello", "12")] == ["Hello", "12"]
    # Beside questions that are no JSON text, a state is what it is.
    assert QuestionRow.of({**row, "questions": QUESTIONS}).state == '{"from": "zoë"}'


def test_rows_of_every_source(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "state": {"b": 1}, "targets": {}}) + "\n")
    from_file = list(as_question_rows(read_rows(file)))
    assert from_file[0] == QuestionRow.of(ROW)
    assert from_file[1].state == {"b": 1}
    # A table gives the keys of all rows to each, with None.
    other = {"state": {"b": 1}, "questions": {"new": {"type": "score", "criteria": ["a", "b"]}}, "targets": {"new": 1}}
    tone = {"state": {"a": 1}, "questions": {"tone": QUESTIONS["tone"]}, "targets": {"tone": 2}}
    first, second = as_question_rows(Dataset.from_list([tone, other]))
    assert (first.state, second.state) == ({"a": 1}, {"b": 1})
    assert [question.id for row in (first, second) for question in row.questions] == ["tone", "new"]
    assert first.targets.keys() == {"tone"} and second.targets["new"].mean == 1


def test_options_that_a_table_hides():
    questions = [{"q": {"type": "choice", "criteria": dict.fromkeys(names)}} for names in ("ab", "cd")]
    rows = [{"state": "Hello", "questions": one} for one in questions]
    assert [row.questions[0].names for row in as_question_rows(rows)] == [("a", "b"), ("c", "d")]
    with pytest.raises(ValueError, match="row 0: question 'q': an option of its choice has no description in a table"):
        list(as_question_rows(Dataset.from_list(rows)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "the row has no `state`"),
        ({"state": "  "}, "its `state` is empty"),
        ({"state": {}}, "its `state` is empty"),
        ({"state": {"a": object()}}, "which JSON cannot hold"),
        ({"state": {"a": float("nan")}}, "which JSON cannot hold"),
        ({"questions": None}, "the row has no `questions`"),
        ({"questions": {}}, "its `questions` are empty"),
        ({"questions": [1]}, r"its `questions` are \[1\]"),
        ({"questions": "{"}, "its `questions` are not JSON"),
        ({"questions": '{"a": {"type": "noul"}, "a": {"type": "noul"}}'}, "the key 'a' stands twice"),
        ({"questions": {"a": {"type": "x"}}}, "question 'a': its type is 'x'"),
        ({"targets": [1]}, r"its `targets` are \[1\]"),
        ({"targets": "{"}, "its `targets` are not JSON"),
        ({"targets": {"stars": 1}}, "a target for 'stars', and asks 'tone', 'spam', 'team'"),
        ({"targets": {"tone": 3}}, "question 'tone': the target 3 is outside"),
    ],
)
def test_what_is_no_row(change, message):
    with pytest.raises(ValueError, match=f"row 4: .*{message}"):
        list(as_question_rows([{**ROW, **change}], first_row=4))
