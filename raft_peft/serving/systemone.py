"""`/v1/systemone`: several typed questions about one state, in the shape of Jev and of vLLM."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, Question
from raft_peft.prediction.questions.answering import ReadQuestion, answers_of
from raft_peft.serving.errors import invalid
from raft_peft.serving.limits import Limits
from raft_peft.serving.models import ServedModel
from raft_peft.serving.predictions import Share


class SystemOneQuestion(BaseModel):
    """A question about the state."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="score, noul (also written predicate), choice, or raft-peft's own number.")
    instructions: str | None = Field(default=None, description="What is asked.")
    criteria: Any = Field(
        default=None,
        description="Of a score 2 to 10 levels, the lowest first; of a noul what true and false mean, or nothing; of "
        "a choice its options with a description or null; of a number its grid.",
    )


class SystemOneRequest(BaseModel):
    """Questions about a state."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "state": "I was charged twice. Please refund me today.",
                "questions": {
                    "urgency": {
                        "type": "score",
                        "instructions": "How urgent is it?",
                        "criteria": ["can wait", "this week", "today"],
                    },
                    "refund": {"type": "noul", "instructions": "Does the customer ask for a refund?"},
                },
            }
        },
    )

    model: str | None = Field(default=None, description="One of /v1/models; by default the first.")
    state: Any = Field(description="What the questions are about: a text, JSON, or the messages of a chat.")
    questions: dict[str, SystemOneQuestion] | None = Field(
        default=None, description="By their ids. By default those that the model was trained on."
    )
    instructions: str | None = Field(default=None, description="A message before the state.")
    interval: Share | None = Field(
        default=None,
        description="raft-peft's own: also send where this share of targets lies, as `low` and `high`, or of a choice "
        "and a noul as `options`. Needs raft-peft calibrate.",
    )


class SystemOneUsage(BaseModel):
    """What was computed."""

    input_tokens: int = Field(description="Of all questions, each with its state.")
    output_tokens: int = Field(description="Always 0: nothing is generated.")


class Diagnostics(BaseModel):
    """How much a model answers with the labels at all."""

    label_mass: float = Field(description="The probability of all labels over the whole vocabulary.")


class SystemOneResponse(BaseModel):
    """The answers, by the ids of their questions."""

    id: str
    object: Literal["structured_decision"] = "structured_decision"
    created: int
    model: str
    answers: dict[str, dict[str, Any]] = Field(
        description="Without those whose labels have too little probability, where the server was told a least one."
    )
    usage: SystemOneUsage
    diagnostics: dict[str, Diagnostics]


def questions_of(request: SystemOneRequest, trained: Any, limits: Limits) -> list[Question]:
    """The questions of a request.

    Args:
        request: which may have none.
        trained: the questions that the model was trained on; None where there are none.
        limits: of the server.

    Raises:
        RequestError: there are none, or one is no question.
    """
    asked: Any = request.questions
    if asked is None:
        asked = trained
    if not asked:
        raise invalid("`questions` are missing. Send {id: {'type': ..., 'instructions': ..., 'criteria': ...}}.")
    for name, one in asked.items():
        if isinstance(one, SystemOneQuestion) and one.type == NUMBER:
            check_grid_size(name, one.criteria, limits.numbers)
    try:
        return [
            Question.of(name, one.model_dump() if isinstance(one, SystemOneQuestion) else one)
            for name, one in asked.items()
        ]
    except ValueError as error:
        raise invalid(str(error)) from error


def check_grid_size(name: str, criteria: Any, limit: int) -> None:
    """Refuse a grid that would be too large, before it is made."""
    count = len(criteria) if isinstance(criteria, list | dict) else 0
    if isinstance(criteria, str):
        ends = criteria.split("..")
        try:
            low, high, step = (float(number) for number in (*ends, "1")[:3])
            count = int((high - low) / step) + 1
        except (ValueError, ZeroDivisionError, OverflowError):
            count = criteria.count(",") + 1
    if count > limit:
        raise invalid(
            f"question {name!r}: its grid has {count:,} numbers, and the server takes {limit:,}. Ask for fewer."
        )


def check_interval(model: ServedModel, questions: Sequence[Question], interval: float | None) -> None:
    """Refuse an interval that cannot be given, before anything is computed.

    Raises:
        RequestError: the model is not calibrated, or not for these questions, in these words and for this level.
    """
    if interval is None:
        return
    if model.question_calibration is None:
        raise invalid(
            f"The model {model.name!r} is not calibrated for questions, so it has no intervals. Leave `interval` out, "
            "or run raft-peft calibrate on its folder, and start the server anew."
        )
    try:
        for question in questions:
            model.question_calibration.of(question).check(interval)
    except ValueError as error:
        raise invalid(str(error)) from error


def response(
    model: ServedModel, read: Sequence[ReadQuestion], tokens: int, least_mass: float, interval: float | None = None
) -> SystemOneResponse:
    """The answers as they are sent.

    Args:
        model: which gave them.
        read: of each question.
        tokens: of all prompts.
        least_mass: the probability of all labels below which a question has no answer.
        interval: the share of targets that intervals cover, see `check_interval`; None for none.
    """
    (answers,) = answers_of([read], model.question_calibration, interval)
    return SystemOneResponse(
        id=f"decision-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model.name,
        answers={
            one.question.id: _answer(one.question, answers[one.question.id])
            for one in read
            if answers[one.question.id].label_mass >= least_mass
        },
        usage=SystemOneUsage(input_tokens=tokens, output_tokens=0),
        diagnostics={name: Diagnostics(label_mass=answer.label_mass) for name, answer in answers.items()},
    )


def _answer(question: Question, answer: Answer) -> dict[str, Any]:
    found = _value(question, answer)
    if answer.low is not None:
        found |= {"low": answer.low, "high": answer.high}
    return found if answer.options is None else {**found, "options": list(answer.options)}


def _value(question: Question, answer: Answer) -> dict[str, Any]:
    probabilities = list(answer.probabilities.values())
    # The likeliest label's probability over the whole vocabulary, as vLLM has it.
    confidence = max(probabilities) * answer.label_mass
    if question.type == PREDICATE:
        return {"type": "noul", "noul": answer.value, "probabilities": answer.probabilities, "confidence": confidence}
    if question.type == CHOICE:
        return {
            "type": CHOICE,
            "choice": answer.value,
            "probabilities": answer.probabilities,
            "confidence": confidence,
        }
    if question.type == NUMBER:
        return {
            "type": NUMBER,
            "number": answer.value,
            "probabilities": answer.probabilities,
            "confidence": confidence,
        }
    return {
        "type": "score",
        "score": answer.value,
        "legend": {str(place): name for place, name in enumerate(question.names)},
        "probabilities": {str(place): share for place, share in enumerate(probabilities)},
        "confidence": confidence,
    }
