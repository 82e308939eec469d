"""`/v1/systemone`: several typed questions about one state, in the shape of Jev and of vLLM."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, Question
from raft_peft.prediction.questions.predictor import ReadQuestion
from raft_peft.serving.errors import invalid
from raft_peft.serving.limits import Limits


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
            _check_count(name, one.criteria, limits.numbers)
    try:
        return [
            Question.of(name, one.model_dump() if isinstance(one, SystemOneQuestion) else one)
            for name, one in asked.items()
        ]
    except ValueError as error:
        raise invalid(str(error)) from error


def _check_count(name: str, criteria: Any, limit: int) -> None:
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


def response(model: str, read: Sequence[ReadQuestion], tokens: int, least_mass: float) -> SystemOneResponse:
    """The answers as they are sent.

    Args:
        model: its name.
        read: of each question.
        tokens: of all prompts.
        least_mass: the probability of all labels below which a question has no answer.
    """
    answers = {one.question.id: one.answer() for one in read}
    return SystemOneResponse(
        id=f"decision-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        answers={one.question.id: _answer(one) for one in read if answers[one.question.id].label_mass >= least_mass},
        usage=SystemOneUsage(input_tokens=tokens, output_tokens=0),
        diagnostics={name: Diagnostics(label_mass=answer.label_mass) for name, answer in answers.items()},
    )


def _answer(read: ReadQuestion) -> dict[str, Any]:
    question, answer = read.question, read.answer()
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
