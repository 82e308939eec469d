"""Rows that leave questions, states and targets to a form."""

import json

import pytest
from support.questions import QUESTIONS

from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.questions.form import QuestionForm, is_from_table, read_questions
from raft_peft.data.questions.question import Question

ASKED = {name: Question.of(name, one) for name, one in QUESTIONS.items()}
FORM = QuestionForm(ASKED)
WRITES = QuestionForm(ASKED, PromptTemplate("{title}: {text}"))


def test_what_a_row_brings_itself_is_kept():
    own = {"fun": {"type": "noul"}}
    (row,) = FORM.rows([{"state": "a", "questions": own, "targets": {"fun": 0.25}, "anger": 2}])
    assert [one.id for one in row.questions] == ["fun"]
    assert row.targets["fun"].mean == 0.25
    (row,) = FORM.rows([{"state": "a", "questions": None, "targets": {"anger": "furious"}, "price": 5}])
    assert [one.id for one in row.questions] == list(QUESTIONS)
    assert {name: one.mean for name, one in row.targets.items()} == {"anger": 2.0}


def test_targets_stand_in_columns_of_the_ids():
    """All is text in CSV, and what is missing is empty."""
    cells = {"anger": "1.5", "spam": "True", "kind": '["bill", "letter"]', "price": "", "targets": "", "questions": ""}
    (row,) = FORM.rows([{"state": "a", **cells}])
    assert {name: one.mean for name, one in row.targets.items() if name != "kind"} == {"anger": 1.5, "spam": 1.0}
    assert (row.targets["kind"].values, row.targets["kind"].shares) == ((0.0, 1.0), (0.5, 0.5))
    assert FORM.row({"state": "a", "anger": "no level"}, 0, with_targets=False).targets == {}


def test_a_template_writes_the_state():
    assert WRITES.row({"title": "A", "text": "b"}, 0, with_targets=False).state == "A: b"
    # Rows that were written already have none of its columns.
    assert WRITES.row({"state": "A: b"}, 0, with_targets=False).state == "A: b"
    quoted = {"title": "A", "text": '"b"', "questions": json.dumps(QUESTIONS)}
    assert QuestionForm(None, PromptTemplate("{text}")).row(quoted, 0, with_targets=False).state == '"b"'
    chat = QuestionForm(ASKED, PromptTemplate([{"role": "user", "content": "{text}"}]))
    assert chat.row({"text": "b"}, 0, with_targets=False).state == [{"role": "user", "content": "b"}]


def test_objects_of_a_table_have_the_keys_of_all_rows():
    form = QuestionForm(ASKED, from_table=True)
    row = form.row({"state": {"a": 1, "b": None}}, 0, with_targets=False)
    assert (row.state, row.questions) == ({"a": 1}, tuple(ASKED.values()))
    assert [is_from_table(name) for name in ("a.jsonl", "a.csv", "a.parquet", "owner/name:test")] == [False] * 2 + [
        True
    ] * 2


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (QuestionForm(), {"state": "a"}, r"row 3: the row has no `questions`, and none are known from training"),
        (FORM, {"text": "a"}, r"no `state`; its columns are \['text'\]. .* `prompt_template='\{text\}'`"),
        (FORM, {"id": 1, "prompt": "a"}, r"A `prompt` is not taken for one unasked.*`prompt_template='\{prompt\}'`"),
        (FORM, {"state": None}, "the column `state` is empty"),
        (FORM, {"state": ""}, "its `state` is empty"),
        (WRITES, {"title": "A"}, r"no `state`, nor the columns of the prompt template '\{title\}: \{text\}'"),
        (WRITES, {"title": "A", "text": None}, "The column 'text', which the prompt is made of, is empty"),
    ],
)
def test_rows_that_cannot_be_read(form, row, message):
    with pytest.raises(ValueError, match=message):
        form.row(row, 3, with_targets=True)


def test_all_rows_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match=r"(?s)2 row\(s\) cannot be used.*row 0: .*row 2: question 'anger'"):
        FORM.rows([{"text": "a"}, {"state": "a"}, {"state": "a", "anger": 3}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": {"type": "noul"}, "a": {"type": "noul"}}', "the key 'a' occurs twice"),
        ("[]", r"holds \[\]. Write \{\"ID\""),
        ("{}", "holds no question"),
        ('{"a": {"type": "stars"}}', "questions.json: question 'a': its type is 'stars'"),
        (json.dumps({"type": "noul", "instructions": "?"}), "question 'type': it is 'noul'. Write"),
    ],
)
def test_files_that_hold_no_questions(text, message, tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_a_file_of_questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(QUESTIONS), encoding="utf-8-sig")
    assert read_questions(path) == ASKED
