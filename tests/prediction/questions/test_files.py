"""Answers to the questions of rows, as they are written to a file; the files are in tests/cli/test_questions.py."""

import pytest
from support.given_answers import TONE_AND_KIND, GivenAnswers

from raft_peft.data.questions.form import QuestionForm
from raft_peft.prediction.questions.files import answer_rows


def answered(sources, **options):
    predictor = GivenAnswers()
    form = QuestionForm()
    made = answer_rows(predictor, sources, form, show_progress=False, **options)
    return [row for chunk in made for row in chunk], predictor


def test_rows_are_answered_in_chunks():
    sources = [{"state": f"s{index}", "questions": TONE_AND_KIND, "id": index} for index in range(5)]
    found, predictor = answered(sources, chunk_size=2, first_row=10, interval=0.8, distribution=True)
    assert predictor.asked == [(10 + index, f"s{index}") for index in range(5)]
    assert [{name: row[name] for name in sources[0]} for row in found] == sources
    assert found[3]["answers"] == {
        "tone": {
            "value": 0.8,
            "low": 0.55,
            "high": 1.0,
            "probabilities": {"rude": 0.2, "kind": 0.8},
            "label_mass": 0.5,
        },
        "kind": {
            "value": "letter",
            "options": ["letter", "card"],
            "probabilities": {"letter": 0.5, "bill": 0.25, "card": 0.25},
            "label_mass": 0.4,
        },
    }


class RefusesLetters(GivenAnswers):
    """Answers like a server that refuses a question about a state."""

    def read_questions(self, rows, *options, **named):
        read = super().read_questions(rows, *options, **named)
        refused = [row.state == "b" for row in rows]
        return [
            [one for one in found if one.question.id != "kind" or not no]
            for found, no in zip(read, refused, strict=True)
        ]


@pytest.mark.parametrize("as_columns", [False, True])
def test_what_a_server_refuses_is_empty_and_counted(as_columns, caplog):
    sources = [{"state": state, "questions": TONE_AND_KIND} for state in "abb"]
    options = {"interval": 0.8, "distribution": True, "as_columns": as_columns, "chunk_size": 1}
    made = answer_rows(RefusesLetters(), sources, QuestionForm(), show_progress=False, **options)
    first, second, _ = [row for chunk in made for row in chunk]
    assert list(first) == list(second)
    if as_columns:
        assert second["answer_tone"] == 0.8 and first["answer_kind"] == "letter"
        assert [second[name] for name in second if name.startswith("answer_kind")] == [None] * 4
    else:
        assert second["answers"]["kind"] == dict.fromkeys(["value", "options", "probabilities", "label_mass"])
        assert list(first["answers"]["kind"]) == list(second["answers"]["kind"])
    assert "The server refused 2 of 6 questions. Their answers are empty." in caplog.text


def test_what_has_no_place_in_a_table():
    row = {"state": "a", "questions": TONE_AND_KIND}
    (found,), _ = answered([row], as_columns=True, interval=0.8)
    assert [name for name in found if name not in row] == [
        *("answer_tone", "answer_tone_low", "answer_tone_high", "answer_kind", "answer_kind_options"),
    ]
    with pytest.raises(ValueError, match="Row 1 asks other questions than the first"):
        answered([row, {"state": "a", "questions": {"tone": TONE_AND_KIND["tone"]}}], as_columns=True)
    with pytest.raises(ValueError, match="two questions would have one column, 'answer_tone_low'"):
        own = {"tone": TONE_AND_KIND["tone"], "tone_low": TONE_AND_KIND["tone"]}
        answered([{"state": "a", "questions": own}], as_columns=True, interval=0.8)
    with pytest.raises(ValueError, match="Row 0 has a column 'answer_kind' already"):
        answered([{**row, "answer_kind": 1}], as_columns=True)
