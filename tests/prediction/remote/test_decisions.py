"""Answers from decisions APIs: bodies as servers write them, and a server of our own in tests/serving."""

import math

import pytest

from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.remote.completions_api import ServerError
from raft_peft.prediction.remote.decisions import RemoteDecisions
from raft_peft.prediction.remote.decisions_api import APIS

QUESTIONS = {
    "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["low", "mid", "high"]},
    "refund": {"type": "noul", "instructions": "A refund?"},
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "payments", "other": None}},
}
ROW = QuestionRow.of({"state": {"text": "Refund me!"}, "questions": QUESTIONS})
# As the documentation of the two APIs has them.
OF_SYSTEM_ONE = {
    "answers": {
        "urgency": {"type": "score", "score": 1.5, "probabilities": {"0": 0.1, "1": 0.3, "2": 0.6}, "confidence": 0.6},
        "refund": {"type": "noul", "noul": 0.75},
        "team": {"type": "choice", "choice": "other", "probabilities": {"billing": 0.25, "other": 0.75}},
    },
    "diagnostics": {"refund": {"label_mass": 0.5}},
}
OF_DECISIONS = {
    "answers": [
        {
            "type": "score",
            "name": "urgency",
            "score": 1.5,
            "probabilities": [
                {"value": place, "label": label, "probability": share}
                for place, (label, share) in enumerate((("low", 0.1), ("mid", 0.3), ("high", 0.6)))
            ],
        },
        {"type": "predicate", "name": "refund", "probability": 0.75},
        {
            "type": "choice",
            "name": "team",
            "choice": "other",
            "probabilities": [{"value": "billing", "probability": 0.25}, {"value": "other", "probability": 0.75}],
        },
    ]
}


def answers(api, body):
    return {one.question.id: one.answer() for one in APIS[api].read(ROW, body)}


@pytest.mark.parametrize(("api", "body"), [("systemone", OF_SYSTEM_ONE), ("decisions", OF_DECISIONS)])
def test_answers_are_read(api, body):
    found = answers(api, body)
    assert found["urgency"].value == pytest.approx(0.3 + 2 * 0.6)
    assert found["urgency"].probabilities == pytest.approx({"low": 0.1, "mid": 0.3, "high": 0.6})
    assert found["refund"].probabilities == pytest.approx({"yes": 0.75, "no": 0.25})
    assert found["team"].value == "other"
    assert math.isnan(found["team"].label_mass)
    assert found["refund"].label_mass == pytest.approx(0.5) or api == "decisions"


def test_what_is_refused_is_missing():
    refused = {"answers": [{"type": "refusal", "name": "urgency"}, *OF_DECISIONS["answers"][1:]]}
    assert set(answers("decisions", refused)) == {"refund", "team"}
    others = {name: one for name, one in OF_SYSTEM_ONE["answers"].items() if name != "refund"}
    assert set(answers("systemone", {"answers": others})) == {"urgency", "team"}


def test_requests_have_the_shape_of_each():
    asked = APIS["decisions"].request("m", ROW)
    assert asked["input"] == '{"text": "Refund me!"}'
    assert asked["questions"][2]["choices"] == [{"value": "billing", "description": "payments"}, {"value": "other"}]
    assert APIS["systemone"].request("m", ROW) == {
        "model": "m",
        "state": {"text": "Refund me!"},
        "questions": {**QUESTIONS},
    }


@pytest.mark.parametrize(
    ("api", "body", "words"),
    [
        ("systemone", {"choices": []}, "no `answers`"),
        ("systemone", {"answers": {"refund": {"noul": None}}}, "no `noul`"),
        ("systemone", {"answers": {"refund": {"noul": 1.5}}}, "'refund' has the probabilities"),
        ("systemone", {"answers": {"team": "billing"}}, "no `probabilities`"),
        ("decisions", {"answers": OF_DECISIONS["answers"][:2]}, "2 of 3 questions"),
        ("decisions", [], "Is it a decisions API"),
    ],
)
def test_other_answers_are_errors(api, body, words):
    with pytest.raises(ServerError, match=words):
        APIS[api].read(ROW, body)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="There is no decisions API 'chat'"):
        RemoteDecisions("http://localhost:8000/v1", "m", api="chat")
    number = QuestionRow.of({"state": "a", "questions": {"n": {"type": "number", "criteria": "0..9"}}})
    with pytest.raises(ValueError, match="no type 'number'"):
        APIS["decisions"].request("m", number)
    meant = {"type": "noul", "instructions": "Spam?", "criteria": {"true": "an advertisement"}}
    with pytest.raises(ValueError, match="does not take what yes and no mean"):
        APIS["decisions"].request("m", QuestionRow.of({"state": "a", "questions": {"spam": meant}}))
    with pytest.raises(ValueError, match=r"`timeout=0`"):
        RemoteDecisions("http://localhost:8000/v1", "m", timeout=0)
