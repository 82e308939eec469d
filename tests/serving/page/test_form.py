"""Questions in fields, and the examples of a model."""

from copy import copy
from dataclasses import replace

import pytest
from support.serving import TICKETS

from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.questions.question import Question
from raft_peft.serving.errors import RequestError
from raft_peft.serving.page.form import SLOTS, Slot, examples_of, questions_of_slots, slots_of

ODD = {
    "commas": {"type": "score", "criteria": ["no, never", "yes"]},
    "lines": {"type": "score", "criteria": ["a\nb", "c"]},
    "colon": {"type": "choice", "criteria": {"a: b": None, "c": "d: e"}},
    "sides": {"type": "noul", "criteria": {"true": "It is", "false": None}},
    "texts": {"type": "number", "criteria": {"0": "none", "1": "some"}},
    "range": {"type": "number", "criteria": "0..1..0.5"},
}


@pytest.mark.parametrize("questions", [TICKETS, ODD])
def test_fields_are_read_as_the_same_questions(questions):
    read = questions_of_slots(slots_of(questions))
    assert {name: Question.of(name, raw) for name, raw in read.items()} == {
        name: Question.of(name, raw) for name, raw in questions.items()
    }


def test_questions_as_a_person_writes_them():
    slots = [
        Slot("", "score", "How urgent?", "can wait, today"),
        Slot("days", "number", "", "0..3"),
        Slot(),
        Slot("team", "choice", "Which?", "billing: payments\n\nother"),
    ]
    assert questions_of_slots(slots) == {
        "question 1": {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "today"]},
        "days": {"type": "number", "instructions": "", "criteria": "0..3"},
        "team": {"type": "choice", "instructions": "Which?", "criteria": {"billing": "payments", "other": None}},
    }


def test_what_the_fields_cannot_hold():
    with pytest.raises(RequestError, match="no question"):
        questions_of_slots([Slot()] * 2)
    with pytest.raises(RequestError, match="Two questions are named 'a'"):
        questions_of_slots([Slot("a", "predicate", "So?")] * 2)
    with pytest.raises(RequestError, match=f"room for {SLOTS}"):
        slots_of({str(number): TICKETS["refund"] for number in range(SLOTS + 1)})
    with pytest.raises(RequestError, match="its type is 'text'"):
        slots_of({"a": {"type": "text"}})


def test_examples_are_those_of_the_card(models, tmp_path):
    shape = "Review: ... Stars:"
    predictor = copy(models["stars"].predictor)
    predictor.prompt_form = PromptForm(shape=shape)
    model = replace(models["stars"], predictor=predictor)
    assert examples_of(model) == (shape,)
    widget = "- text: 'Review: great! Stars:'\n- messages: [{role: user, content: hi}]\n- src: a.png\n"
    card = f"---\nwidget:\n{widget}---\n# a\n"
    (tmp_path / "README.md").write_text(card)
    assert examples_of(replace(model, folder=str(tmp_path))) == (
        "Review: great! Stars:",
        '[{"role": "user", "content": "hi"}]',
        shape,
    )
    assert examples_of(models["tickets"]) == ()
    predictor.prompt_form = PromptForm(PromptTemplate("{title}: {text} Stars:"))
    assert examples_of(replace(model)) == ('{"title": "...", "text": "..."}',)
