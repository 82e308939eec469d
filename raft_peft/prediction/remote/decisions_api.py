"""The decisions APIs of servers: a question as they take it, and their answers as ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.remote.completions_api import ServerError


class DecisionsAPI(Protocol):
    """A shape of requests and answers.

    Attributes:
        route: behind the base URL.
    """

    route: str

    def request(self, model: str, row: QuestionRow) -> dict[str, Any]:
        """The body that asks the questions of a row."""

    def answers(self, row: QuestionRow, body: Any) -> dict[str, Answer]:
        """What a body answers, by the ids of the questions; those that the server refuses are missing.

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

    def answers(self, row: QuestionRow, body: Any) -> dict[str, Answer]:
        found, masses = _part(body, "answers", Mapping), body.get("diagnostics") or {}
        return {
            one.id: self._answer(one, found[one.id], masses.get(one.id) or {})
            for one in row.questions
            if one.id in found
        }

    def _answer(self, question: Question, answer: Any, diagnostics: Mapping[str, Any]) -> Answer:
        mass = diagnostics.get("label_mass")
        if question.type == PREDICATE:
            yes = answer.get("noul")
            return _answer(question, [yes, None if yes is None else 1 - yes], mass)
        shares = _part(answer, "probabilities", Mapping)
        # The levels of a score go by their places.
        names = map(str, range(len(question.names))) if question.type == "score" else question.names
        return _answer(question, [shares.get(name) for name in names], mass)


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
        asked: dict[str, Any] = {"type": question.type, "name": question.id, "instructions": question.instructions}
        key, name = ("choices", "value") if question.type == CHOICE else ("levels", "label")
        if question.type != PREDICATE:
            asked[key] = [
                {name: option.name, **({"description": option.description} if option.description else {})}
                for option in question.options
            ]
        return asked

    def answers(self, row: QuestionRow, body: Any) -> dict[str, Answer]:
        found = _part(body, "answers", Sequence)
        if len(found) != len(row.questions):
            raise ServerError(f"The server answered {len(found)} of {len(row.questions)} questions.")
        return {
            one.id: self._answer(one, answer)
            for one, answer in zip(row.questions, found, strict=True)
            if answer.get("type") != "refusal"
        }

    def _answer(self, question: Question, answer: Any) -> Answer:
        if question.type == PREDICATE:
            yes = answer.get("probability")
            return _answer(question, [yes, None if yes is None else 1 - yes], None)
        shares = [one.get("probability") for one in _part(answer, "probabilities", Sequence)]
        return _answer(question, shares, None)


APIS: dict[str, DecisionsAPI] = {api.route: api for api in (SystemOne(), Decisions())}


def _part(body: Any, name: str, kind: type) -> Any:
    found = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(found, kind):
        raise ServerError(f"The server's answer has no `{name}`: {body!s:.200}. Is it a decisions API?")
    return found


def _answer(question: Question, shares: Sequence[Any], mass: float | None) -> Answer:
    known = [share for share in shares if isinstance(share, int | float) and 0 <= share <= 1 + 1e-6]
    if len(known) != len(question.names) or not sum(known) > 0:
        raise ServerError(f"The server's answer to {question.id!r} has the probabilities {shares!r:.200}.")
    probabilities = [share / sum(known) for share in known]
    value: float | str = math.fsum(share * one for share, one in zip(probabilities, question.values, strict=True))
    if question.is_choice:
        value = question.names[probabilities.index(max(probabilities))]
    return Answer(value, dict(zip(question.names, probabilities, strict=True)), math.nan if mass is None else mass)
