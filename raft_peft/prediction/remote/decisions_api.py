"""The decisions APIs of servers: a question as they take it, and their answers as ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.questions.answering import ReadQuestion
from raft_peft.prediction.remote.completions_api import ServerError


class DecisionsAPI(Protocol):
    """A shape of requests and answers.

    Attributes:
        route: behind the base URL.
    """

    route: str

    def request(self, model: str, row: QuestionRow) -> dict[str, Any]:
        """The body that asks the questions of a row.

        Raises:
            ValueError: a question that this shape cannot ask.
        """

    def read(self, row: QuestionRow, body: Any) -> list[ReadQuestion]:
        """What a body answers to the questions in their order; those that the server refuses are missing.

        Raises:
            ServerError: it does not answer them.
        """


class SystemOne:
    """`/v1/systemone`, the shape of Jev, vLLM and others."""

    route = "systemone"

    def request(self, model: str, row: QuestionRow) -> dict[str, Any]:
        questions = {}
        for one in row.questions:
            asked = {name: value for name, value in one.as_dict().items() if value is not None}
            questions[one.id] = {**asked, "type": "noul" if one.type == PREDICATE else one.type}
        return {"model": model, "state": row.state, "questions": questions}

    def read(self, row: QuestionRow, body: Any) -> list[ReadQuestion]:
        found, diagnostics = _part(body, "answers", Mapping), body.get("diagnostics")
        return [self._read(one, found[one.id], _mass(diagnostics, one.id)) for one in row.questions if one.id in found]

    def _read(self, question: Question, answer: Any, mass: float | None) -> ReadQuestion:
        if question.type == PREDICATE:
            yes = _part(answer, "noul", float | int)
            return _read(question, [yes, 1 - yes], mass)
        shares = _part(answer, "probabilities", Mapping)
        # The levels of a score go by their places.
        names = map(str, range(len(question.names))) if question.type == "score" else question.names
        return _read(question, [shares.get(name) for name in names], mass)


class Decisions:
    """`/v1/decisions`, the shape of OpenAI. It tells no label mass."""

    route = "decisions"

    def request(self, model: str, row: QuestionRow) -> dict[str, Any]:
        state = row.state if isinstance(row.state, str) else json.dumps(row.state, ensure_ascii=False)
        return {"model": model, "input": state, "questions": [self._question(one) for one in row.questions]}

    def _question(self, question: Question) -> dict[str, Any]:
        if question.type == NUMBER:
            raise ValueError(
                f"question {question.id!r}: /v1/decisions has no type 'number'. Ask for a score of up to ten levels, "
                "or a server of raft-peft by `api='systemone'`."
            )
        if question.type == PREDICATE and any(option.description for option in question.options):
            raise ValueError(
                f"question {question.id!r}: /v1/decisions does not take what yes and no mean. Write it into the "
                "instructions, and leave the criteria out."
            )
        asked: dict[str, Any] = {"type": question.type, "name": question.id, "instructions": question.instructions}
        key, name = ("choices", "value") if question.type == CHOICE else ("levels", "label")
        if question.type != PREDICATE:
            asked[key] = [
                {name: option.name, **({"description": option.description} if option.description else {})}
                for option in question.options
            ]
        return asked

    def read(self, row: QuestionRow, body: Any) -> list[ReadQuestion]:
        found = _part(body, "answers", Sequence)
        if len(found) != len(row.questions):
            raise ServerError(f"The server answered {len(found)} of {len(row.questions)} questions.")
        return [
            self._read(one, answer)
            for one, answer in zip(row.questions, found, strict=True)
            if _part(answer, "type", str) != "refusal"
        ]

    def _read(self, question: Question, answer: Any) -> ReadQuestion:
        if question.type == PREDICATE:
            yes = _part(answer, "probability", float | int)
            return _read(question, [yes, 1 - yes], None)
        shares = [_part(one, "probability", float | int) for one in _part(answer, "probabilities", Sequence)]
        return _read(question, shares, None)


APIS: dict[str, DecisionsAPI] = {api.route: api for api in (SystemOne(), Decisions())}


def _part(body: Any, name: str, kind: Any) -> Any:
    found = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(found, kind):
        raise ServerError(f"The server's answer has no `{name}`: {body!s:.200}. Is it a decisions API?")
    return found


def _mass(diagnostics: Any, question: str) -> float | None:
    """The probability of all options over the whole vocabulary; None where it is not told."""
    told = diagnostics.get(question) if isinstance(diagnostics, Mapping) else None
    mass = told.get("label_mass") if isinstance(told, Mapping) else None
    return mass if isinstance(mass, int | float) and 0 < mass <= 1 + 1e-6 else None


def _read(question: Question, shares: Sequence[Any], mass: float | None) -> ReadQuestion:
    """What was read for a question.

    Args:
        question: as it was asked.
        shares: of its options, in their order.
        mass: of all of them over the whole vocabulary; None where it is not told.
    """
    known = [share for share in shares if isinstance(share, int | float) and 0 <= share <= 1 + 1e-6]
    if len(known) != len(question.names) or not sum(known) > 0:
        raise ServerError(f"The server's answer to {question.id!r} has the probabilities {shares!r:.200}.")
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array(known) / sum(known) * (1.0 if mass is None else mass))
    return ReadQuestion(question, log_probs.astype(np.float32), knows_mass=mass is not None)
