"""A typed question: what is asked, and the options that answer it."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.grid import NumberGrid

SCORE = "score"
PREDICATE = "predicate"
CHOICE = "choice"
NUMBER = "number"
TYPES = (SCORE, PREDICATE, CHOICE, NUMBER)

YES, NO = "yes", "no"
_OTHER_NAMES = {"noul": PREDICATE}
_KEYS = ("type", "instructions", "criteria")
# A level is answered by its digit, and an option by its letter, each of which is one token.
MOST_LEVELS = len(string.digits)
MOST_OPTIONS = len(string.ascii_uppercase)


@dataclass(frozen=True)
class Option:
    """What a question may be answered with.

    Attributes:
        name: a level, yes or no, an option, or the text of a number.
        description: what it stands for; None where nothing is said of it.
    """

    name: str
    description: str | None = None


@dataclass(frozen=True)
class Question:
    """A question about a state, as the decisions APIs ask it.

    >>> question = Question.of("tone", {"type": "score", "instructions": "How polite?", "criteria": ["rude", "kind"]})
    >>> question.names, question.values
    (('rude', 'kind'), (0.0, 1.0))

    Attributes:
        id: its name among the questions of a row.
        type: `"score"`, `"predicate"` (also written `"noul"`), `"choice"` or `"number"`.
        instructions: what is asked; may be empty.
        options: what it may be answered with, in order; of a predicate yes, then no.
        grid: the numbers of the type `"number"`; None for the others.
    """

    id: str
    type: str
    instructions: str
    options: tuple[Option, ...]
    grid: NumberGrid | None = None

    @classmethod
    def of(cls, question_id: Any, raw: Any) -> Question:
        """Read a question.

        Args:
            question_id: a text.
            raw: a mapping of `type`; `instructions`, a text; and `criteria`: for a score a list of 2 to 10 levels; for
                a predicate nothing, or a mapping of `true` and `false` to what they mean; for a choice a mapping of 2
                to 26 options to a description or None, or a list of them; for a number its grid, as [`NumberGrid`]
                takes it, or as `NumberGrid.parse` reads it. Or a `Question`.

        Raises:
            ValueError: it is no such question. The message names it.
        """
        if isinstance(raw, Question):
            return raw
        if not isinstance(question_id, str) or not question_id.strip():
            raise ValueError(f"the question id {question_id!r} is no text. Give each question a name.")
        try:
            return cls._read(question_id, raw)
        except ValueError as error:
            raise ValueError(f"question {question_id!r}: {error}") from error

    @classmethod
    def _read(cls, question_id: str, raw: Any) -> Question:
        if not isinstance(raw, Mapping):
            raise ValueError(f"it is {raw!r:.80}. Write {{'type': ..., 'instructions': ..., 'criteria': ...}}.")
        given = {key: value for key, value in raw.items() if value is not None}
        unknown = sorted(str(key) for key in given if key not in _KEYS)
        if unknown:
            raise ValueError(f"it has the keys {unknown}, which are not known. Use {', '.join(_KEYS)}.")
        kind = given.get("type")
        kind = _OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
        if kind not in TYPES:
            raise ValueError(f"its type is {kind!r}. Use one of {', '.join(TYPES)}, or noul for predicate.")
        instructions = given.get("instructions", "")
        if not isinstance(instructions, str):
            raise ValueError(f"its instructions are {instructions!r:.80}. Write them as a text.")
        criteria = given.get("criteria")
        if kind == NUMBER:
            grid = _grid(criteria)
            return cls(question_id, kind, instructions, tuple(map(Option, grid.texts)), grid)
        options = {SCORE: _levels, PREDICATE: _sides, CHOICE: _options}[kind](criteria)
        return cls(question_id, kind, instructions, options)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(option.name for option in self.options)

    @property
    def values(self) -> tuple[float, ...]:
        """The number of each option: a level's place from 0, 1 of yes and 0 of no, an option's place, or the grid."""
        if self.grid is not None:
            return self.grid.values
        return (1.0, 0.0) if self.type == PREDICATE else tuple(map(float, range(len(self.options))))

    @property
    def is_choice(self) -> bool:
        """Whether the options have no order."""
        return self.type == CHOICE

    def as_dict(self) -> dict[str, Any]:
        """The mapping of `type`, `instructions` and `criteria` that it is read from, as JSON can hold it."""
        criteria: Any
        if self.grid is not None:
            # JSON has no numbers as keys, and a grid with texts of its own needs both.
            criteria = list(self.grid.values) if self.grid.is_plain else [list(pair) for pair in self.grid]
        elif self.type == SCORE:
            criteria = list(self.names)
        elif self.type == CHOICE:
            criteria = {option.name: option.description for option in self.options}
        else:
            yes, no = self.options
            sides = {"true": yes.description, "false": no.description}
            criteria = {side: text for side, text in sides.items() if text is not None} or None
        return {"type": self.type, "instructions": self.instructions, "criteria": criteria}


def _levels(criteria: Any) -> tuple[Option, ...]:
    if isinstance(criteria, str | Mapping) or not isinstance(criteria, Sequence):
        raise ValueError(
            f"the criteria of a score are {criteria!r:.80}. Write a list of its levels, the lowest first: "
            "['poor', 'fair', 'good']."
        )
    names = [_text_of(level, "level") for level in criteria]
    if not 2 <= len(names) <= MOST_LEVELS:
        cure = (
            f"Join some, or ask for a number: the type 'number' with the criteria '0..{len(names) - 1}'."
            if len(names) > MOST_LEVELS
            else "Add levels, or ask for yes or no: the type 'noul'."
        )
        raise ValueError(f"a score has 2 to {MOST_LEVELS} levels, and this one {len(names)}. {cure}")
    return tuple(map(Option, _distinct(names, "level")))


def _sides(criteria: Any) -> tuple[Option, ...]:
    sides = {} if criteria is None else criteria
    if not isinstance(sides, Mapping) or not set(sides) <= {"true", "false"}:
        raise ValueError(
            f"the criteria of a question of yes and no are {criteria!r:.80}. Leave them out, or write what the "
            "answers mean: {'true': '...', 'false': '...'}."
        )
    return Option(YES, _description(sides.get("true"))), Option(NO, _description(sides.get("false")))


def _options(criteria: Any) -> tuple[Option, ...]:
    if isinstance(criteria, Mapping):
        names = [_text_of(name, "option") for name in criteria]
        descriptions = [_description(text) for text in criteria.values()]
    elif isinstance(criteria, Sequence) and not isinstance(criteria, str):
        names = [_text_of(name, "option") for name in criteria]
        descriptions = [None] * len(names)
    else:
        raise ValueError(
            f"the criteria of a choice are {criteria!r:.80}. Write its options with what they stand for: "
            "{'billing': 'payments and refunds', 'other': None}."
        )
    if not 2 <= len(names) <= MOST_OPTIONS:
        raise ValueError(
            f"a choice has 2 to {MOST_OPTIONS} options, which are answered by the letters A to Z, and this one "
            f"{len(names)}. Change its criteria."
        )
    _distinct(names, "option")
    return tuple(Option(name, text) for name, text in zip(names, descriptions, strict=True))


def _grid(criteria: Any) -> NumberGrid:
    if criteria is None:
        raise ValueError("a number has no criteria. Write the numbers that it may be: [0, 1, 2] or '0..100'.")
    grid = _read_grid(criteria)
    if len(grid) < 2:
        raise ValueError(f"a number may be {grid.texts[0]} alone by its criteria. Write two numbers or more.")
    return grid


def _read_grid(criteria: Any) -> NumberGrid:
    if isinstance(criteria, str):
        return NumberGrid.parse(criteria)
    if isinstance(criteria, Mapping):
        return NumberGrid({_number_of(key): text for key, text in criteria.items()})
    if isinstance(criteria, Sequence) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in criteria):
        _distinct([str(number) for number, _ in criteria], "number")
        return NumberGrid({_number_of(number): text for number, text in criteria})
    return NumberGrid(criteria)


def _number_of(key: Any) -> Any:
    """JSON writes the number 3 as the key "3"."""
    try:
        return float(key) if isinstance(key, str) else key
    except ValueError:
        raise ValueError(
            f"the criteria have the key {key!r}, which is not a number. Write {{number: text}}."
        ) from None


def _text_of(name: Any, what: str) -> str:
    if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
        raise ValueError(f"the {what} {name!r:.80} is no text. Give each {what} a name.")
    return str(name)


def _description(text: Any) -> str | None:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the description {text!r:.80} in its criteria is no text. Write a text, or leave it out.")
    return text or None


def _distinct(names: list[str], what: str) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the {what} {twice!r} stands twice in its criteria. Use each {what} once.")
    return names
