"""What is asked on the page, as a link holds it, and what is found, with the base model beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
from pydantic import ValidationError

from raft_peft.grid import NumberGrid
from raft_peft.prediction.questions.answering import ReadQuestion
from raft_peft.serving.computing import Computer, IsGone, check_text
from raft_peft.serving.errors import invalid
from raft_peft.serving.models import ServedModel
from raft_peft.serving.predictions import PredictRequest
from raft_peft.serving.systemone import SystemOneRequest, check_grid_size, questions_of

NUMBER_OF_PROMPT = "number of the prompt"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked on the page.

    Attributes:
        model: its name.
        text: a prompt, or the state that questions are about; or JSON: the messages of a chat, or a row.
        questions: by their ids, as `/v1/systemone` takes them; None for the number of a prompt.
        grid: the numbers that a model without training may answer with; empty for its own.
        interval: the share of labels that intervals are to cover; None for none.
        base: whether the base model is asked too.
    """

    model: str
    text: str
    questions: dict[str, Any] | None = None
    grid: str = ""
    interval: float | None = None
    base: bool = False

    def query(self) -> str:
        """It as the query of a link."""
        parts: dict[str, Any] = {"model": self.model, "text": self.text}
        if self.questions is not None:
            parts["questions"] = json.dumps(self.questions, ensure_ascii=False, separators=(",", ":"))
        elif self.grid:
            parts["grid"] = self.grid
        if self.interval is not None:
            parts["interval"] = f"{self.interval:g}"
        return urlencode({**parts, "base": int(self.base)})

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> Asked | None:
        """What a link holds; None where it holds no text.

        Raises:
            RequestError: it is no link of the page.
        """
        if not query.get("text"):
            return None
        try:
            questions = json.loads(query["questions"]) if "questions" in query else None
            interval = float(query["interval"]) if "interval" in query else None
        except (ValueError, RecursionError) as error:
            raise invalid(f"The link cannot be read: {error}. Copy it again, or fill in the page.") from error
        if questions is not None and not isinstance(questions, dict):
            raise invalid(
                "The questions of the link are no object {id: question}. Copy it again, or fill in the page."
            )
        return cls(
            model=query.get("model", ""),
            text=query["text"],
            questions=questions,
            grid=query.get("grid", ""),
            interval=interval,
            base=query.get("base") == "1",
        )


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one model answers.

    Attributes:
        model: in words.
        value: the number, or the option of a choice; None where it is not told, for the reason in `remark`.
        probabilities: of each number, level or option; empty where there are none.
        mass: the probability of all of them together, over the whole vocabulary.
        entropy: of the distribution over them, in nats.
        low, high: the ends of the interval.
        options: those that hold the true one as often as was asked for.
        remark: what is to be said of it.
    """

    model: str
    value: float | str | None
    probabilities: Mapping[str, float]
    mass: float | None = None
    entropy: float | None = None
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] | None = None
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found for one question, or for a prompt.

    Attributes:
        name: its id.
        kind: the type of the question, or `NUMBER_OF_PROMPT`.
        words: what was asked.
        scale: the least and the greatest value; None where the options have no order.
        ends: of the scale, in words.
        sides: the answers, that of the base model first where it was asked.
    """

    name: str
    kind: str
    words: str
    scale: tuple[float, float] | None
    ends: tuple[str, str]
    sides: Sequence[Side]


async def ask(computer: Computer, asked: Asked, least_mass: float, is_gone: IsGone) -> list[Found]:
    """What a model and its base answer, through the limits and the queue of all requests.

    Args:
        computer: of the server.
        asked: what is asked.
        least_mass: the probability of all labels below which a question is not answered.
        is_gone: whether the client has gone.

    Raises:
        RequestError: it is refused.
    """
    model = computer.models.asked_for(asked.model or None)
    both = [model] if model.base is None or not asked.base else [model.base, model]
    if asked.questions is not None:
        return await _answers(computer, both, asked, least_mass, is_gone)
    if asked.grid:
        check_grid_size("grid", asked.grid, computer.limits.numbers)
        both = [model.of_grid(_grid(asked.grid))]
    both = [one for one in both if one.gives_numbers or one is model]
    sides = await asyncio.gather(*(_number(computer, one, asked, is_gone) for one in both))
    grid = both[-1].predictor.grid
    places = [int(np.argmin(grid.values)), int(np.argmax(grid.values))]
    low, high = (grid.values[place] for place in places)
    ends = (grid.texts[places[0]], grid.texts[places[1]])
    return [Found(name="", kind=NUMBER_OF_PROMPT, words="", scale=(low, high), ends=ends, sides=sides)]


def _grid(text: str) -> NumberGrid:
    try:
        return NumberGrid.parse(text)
    except ValueError as error:
        raise invalid(str(error)) from error


def prompt_of(model: ServedModel, text: str) -> Any:
    """The prompt that a text on the page stands for.

    Args:
        model: which is asked. If it was trained with a prompt template of one column, the text is that column.
        text: may also be JSON: the messages of a chat, or a row.
    """
    read = json_of(text)
    if read is not None:
        return read
    template = model.predictor.prompt_form.template
    return {template.columns[0]: text} if template is not None and len(template.columns) == 1 else text


def json_of(text: str) -> Any:
    """The list or the object that a text is in JSON; None where it is none."""
    try:
        read = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, list | dict) else None


async def _number(computer: Computer, model: ServedModel, asked: Asked, is_gone: IsGone) -> Side:
    interval = asked.interval if model.is_calibrated else None
    has_distribution = model.predictor.has_grid and model.predictor.readout.head.reads_grid
    try:
        body = PredictRequest(
            prompts=[prompt_of(model, asked.text)],
            distribution=has_distribution,
            interval=interval,
        )
    except ValidationError as error:
        raise invalid("The text is JSON, but no list of messages and no row. Write one, or a text.") from error
    (found,) = (await computer.predict(body, model, is_gone)).predictions
    return Side(
        model=_in_words(model),
        value=found.prediction,
        probabilities=found.probabilities or {},
        mass=found.mass,
        entropy=found.entropy,
        low=found.low,
        high=found.high,
        remark="" if found.prediction is not None else "The text that it wrote is no number.",
    )


async def _answers(
    computer: Computer, both: Sequence[ServedModel], asked: Asked, least_mass: float, is_gone: IsGone
) -> list[Found]:
    state = json_of(asked.text)
    try:
        body = SystemOneRequest(state=asked.text if state is None else state, questions=asked.questions)
    except ValidationError as error:
        raise invalid(f"The questions cannot be read: {error.errors()[0]['msg']}. Fill them in again.") from error
    check_text(body)
    questions = questions_of(body, None, computer.limits)
    read = await asyncio.gather(
        *(computer.questions(model, body.state, questions, None, is_gone) for model in both),
    )
    found = []
    for place, question in enumerate(questions):
        sides = [
            _side(model, answers[place], asked.interval, least_mass)
            for model, (answers, *_) in zip(both, read, strict=True)
        ]
        lowest, *_, highest = sorted(zip(question.values, question.names, strict=True))
        found.append(
            Found(
                name=question.id,
                kind=question.type,
                words=question.instructions,
                scale=None if question.is_choice else (lowest[0], highest[0]),
                ends=(lowest[1], highest[1]),
                sides=sides,
            )
        )
    return found


def _side(model: ServedModel, read: ReadQuestion, interval: float | None, least_mass: float) -> Side:
    answer = read.answer()
    if answer.label_mass < least_mass:
        remark = f"Not answered: the server asks for a label mass of {least_mass:g}."
        return Side(model=_in_words(model), value=None, probabilities={}, mass=answer.label_mass, remark=remark)
    shares = np.array(list(answer.probabilities.values()))
    side = Side(
        model=_in_words(model),
        value=answer.value,
        probabilities=answer.probabilities,
        mass=answer.label_mass,
        entropy=float(-(shares * np.log(np.where(shares > 0, shares, 1))).sum()),
    )
    return side if interval is None else _with_interval(side, model, read, interval)


def _with_interval(side: Side, model: ServedModel, read: ReadQuestion, interval: float) -> Side:
    """A side with its interval or set of options, where the question is calibrated in these words."""
    if model.question_calibration is None:
        return side
    try:
        (limits,) = model.question_calibration.of(read.question).limits(read.log_probs[None], interval)
    except ValueError:
        return replace(side, remark="It has no interval: it was not calibrated in these words.")
    return replace(side, **limits)


def _in_words(model: ServedModel) -> str:
    if model.is_base:
        return "base model, without the adapter"
    return f"{model.name}, with the adapter" if model.adapter is not None else model.name
