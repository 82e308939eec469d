"""`/v1/decisions`: several typed questions about one input, in the shape of OpenAI's Decisions API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from raft_peft.data.questions.question import CHOICE, PREDICATE, SCORE, Option, Question
from raft_peft.prediction.questions.answering import ReadQuestion
from raft_peft.serving.errors import invalid


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputText(_Strict):
    """A part of a message."""

    type: Literal["input_text"]
    text: StrictStr


class InputMessage(_Strict):
    """A message of the input. Images, tools and files are refused: the models here read text."""

    role: Literal["user", "developer", "system", "assistant"]
    content: StrictStr | list[InputText]
    type: Literal["message"] = "message"

    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class _Question(_Strict):
    instructions: StrictStr = Field(description="What is asked.")
    name: StrictStr | None = Field(default=None, description="Stands in the answer again.")


class PredicateQuestion(_Question):
    """How likely a statement about the input is true."""

    type: Literal["predicate"]


class ChoiceOption(_Strict):
    """An option. A text and a boolean of the same letters are two."""

    value: StrictStr | StrictBool
    description: StrictStr = ""


class ChoiceQuestion(_Question):
    """Which of the options fits the input."""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2, max_length=26)

    @model_validator(mode="after")
    def _check_choices(self) -> ChoiceQuestion:
        values = [(type(one.value), one.value) for one in self.choices]
        if len(set(values)) < len(values):
            raise ValueError("each value of the choices must be another")
        return self


class ScoreLevel(_Strict):
    """A level of a score."""

    label: StrictStr
    description: StrictStr = ""


class ScoreQuestion(_Question):
    """Where the input stands on ordered levels, the lowest first."""

    type: Literal["score"]
    levels: list[ScoreLevel] = Field(min_length=2, max_length=10)


class DecisionRequest(_Strict):
    """Questions about an input."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "stars-raft",
                "input": "I was charged twice. Please refund me today.",
                "questions": [
                    {
                        "type": "score",
                        "name": "urgency",
                        "instructions": "How urgent is it?",
                        "levels": [{"label": "can wait"}, {"label": "this week"}, {"label": "today"}],
                    }
                ],
            }
        },
    )

    model: StrictStr = Field(description="One of /v1/models.")
    input: StrictStr | Annotated[list[InputMessage], Field(min_length=1)]
    questions: list[Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]] = (
        Field(min_length=1)
    )
    safety_identifier: StrictStr | None = Field(default=None, description="Without effect.")
    prompt_cache_key: StrictStr | None = Field(default=None, description="Without effect.")
    prompt_cache_options: dict[str, Any] | None = Field(default=None, description="Without effect.")


class PredicateAnswer(_Strict):
    """The probability that the statement is true."""

    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float


class ChoiceProbability(_Strict):
    """The probability of an option."""

    value: StrictStr | StrictBool
    probability: float


class ChoiceAnswer(_Strict):
    """The likeliest option."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: StrictStr | StrictBool
    probabilities: list[ChoiceProbability]
    confidence: float


class ScoreProbability(_Strict):
    """The probability of a level, whose place from 0 is its value."""

    value: int
    label: str
    probability: float


class ScoreAnswer(_Strict):
    """The expected level, counted from 0."""

    type: Literal["score"] = "score"
    name: str | None
    score: float
    probabilities: list[ScoreProbability]
    confidence: float


class Refusal(_Strict):
    """The labels have less probability than the server was told to ask for."""

    type: Literal["refusal"] = "refusal"
    name: str | None


class InputTokensDetails(_Strict):
    """Of the input."""

    cached_tokens: int = Field(description="Those that were computed once for several questions.")
    cache_write_tokens: int = 0


class OutputTokensDetails(_Strict):
    """Of the output, which is empty."""

    reasoning_tokens: int = 0


class DecisionUsage(_Strict):
    """What was computed."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class DecisionResponse(_Strict):
    """The answers in the order of the questions."""

    model: str
    answers: list[Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer | Refusal, Field(discriminator="type")]]
    usage: DecisionUsage


def state_of(request: DecisionRequest) -> tuple[str, str | None]:
    """The state that the questions are about, and the system message before it, if any.

    Raises:
        RequestError: nothing is said in the input.
    """
    if isinstance(request.input, str):
        state, system = request.input, None
    else:
        of_system = [one.text() for one in request.input if one.role in ("system", "developer")]
        state = "\n\n".join(one.text() for one in request.input if one.role not in ("system", "developer"))
        system = "\n\n".join(of_system) or None
    if not state.strip():
        raise invalid("`input` is empty. Send the text that the questions are about.")
    return state, system


def questions_of(request: DecisionRequest) -> list[Question]:
    """The questions of a request, with their places as ids: names may be missing, or stand twice."""
    return [_question(str(place), one) for place, one in enumerate(request.questions)]


def _question(place: str, asked: PredicateQuestion | ChoiceQuestion | ScoreQuestion) -> Question:
    try:
        if isinstance(asked, PredicateQuestion):
            return Question.of(place, {"type": PREDICATE, "instructions": asked.instructions})
        if isinstance(asked, ChoiceQuestion):
            values = [one.value for one in asked.choices]
            # A boolean is written as JSON has it, and a text so only where a boolean reads alike.
            names = [
                json.dumps(value) if isinstance(value, bool) or value in _written(values) else value
                for value in values
            ]
            criteria: Any = dict(zip(names, (one.description or None for one in asked.choices), strict=True))
            return Question.of(place, {"type": CHOICE, "instructions": asked.instructions, "criteria": criteria})
        labels = [level.label for level in asked.levels]
        read = Question.of(place, {"type": SCORE, "instructions": asked.instructions, "criteria": labels})
        options = tuple(Option(level.label, level.description or None) for level in asked.levels)
        return Question(read.id, read.type, read.instructions, options)
    except ValueError as error:
        raise invalid(str(error)) from error


def _written(values: Sequence[str | bool]) -> set[str]:
    return {json.dumps(value) for value in values if isinstance(value, bool)}


def response(
    model: str, request: DecisionRequest, read: Sequence[ReadQuestion], tokens: int, computed: int, least_mass: float
) -> DecisionResponse:
    """The answers as they are sent.

    Args:
        model: its name.
        request: with the questions.
        read: of each of them.
        tokens: of all prompts.
        computed: of these, those that were computed, the state once.
        least_mass: the probability of all labels below which a question is refused.
    """
    answers = [_answer(asked, one, least_mass) for asked, one in zip(request.questions, read, strict=True)]
    details = InputTokensDetails(cached_tokens=tokens - computed)
    usage = DecisionUsage(input_tokens=tokens, input_tokens_details=details, total_tokens=tokens)
    return DecisionResponse(model=model, answers=answers, usage=usage)


def _answer(
    asked: PredicateQuestion | ChoiceQuestion | ScoreQuestion, read: ReadQuestion, least_mass: float
) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer | Refusal:
    answer = read.answer()
    probabilities = list(answer.probabilities.values())
    if answer.label_mass < least_mass:
        return Refusal(name=asked.name)
    if isinstance(asked, PredicateQuestion):
        return PredicateAnswer(name=asked.name, probability=float(answer.value))
    confidence = max(probabilities) * answer.label_mass
    if isinstance(asked, ChoiceQuestion):
        values = [one.value for one in asked.choices]
        return ChoiceAnswer(
            name=asked.name,
            choice=values[probabilities.index(max(probabilities))],
            probabilities=[
                ChoiceProbability(value=value, probability=share)
                for value, share in zip(values, probabilities, strict=True)
            ],
            confidence=confidence,
        )
    return ScoreAnswer(
        name=asked.name,
        score=float(answer.value),
        probabilities=[
            ScoreProbability(value=place, label=level.label, probability=share)
            for place, (level, share) in enumerate(zip(asked.levels, probabilities, strict=True))
        ],
        confidence=confidence,
    )
