"""Questions as the page shows them, in fields of text, and the examples of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

from huggingface_hub import ModelCard

from raft_peft.data.questions.question import CHOICE, NUMBER, PREDICATE, SCORE, Question
from raft_peft.methods.saved_folder import CARD_NAME, find_file
from raft_peft.serving.errors import invalid
from raft_peft.serving.models import ServedModel
from raft_peft.serving.page.asking import json_of

IN_WORDS = {SCORE: "Score", PREDICATE: "Yes or no", CHOICE: "Choice", NUMBER: "Number"}
WHAT_IS_WRITTEN = {
    SCORE: "Levels, the lowest first, with commas or one a line",
    PREDICATE: "What the answers mean, if you like: true: ... and false: ..., one a line",
    CHOICE: "Options, with commas or one a line; option: description",
    NUMBER: "Numbers: 0..10, or 1, 2, 5",
}
SLOTS = 8


@dataclass(frozen=True)
class Slot:
    """The fields of a question.

    Attributes:
        name: its id.
        type: of a question.
        instructions: what is asked.
        criteria: its levels, options, numbers or sides.
    """

    name: str = ""
    type: str = SCORE
    instructions: str = ""
    criteria: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return not (self.instructions.strip() or self.criteria.strip())

    @classmethod
    def of(cls, question: Question) -> Slot:
        """The fields that are read as a question again."""
        slot = cls(question.id, question.type, question.instructions, _in_lines(question))
        try:
            if Question.of(question.id, slot.raw()) == question:
                return slot
        except ValueError:
            pass
        return cls(question.id, question.type, question.instructions, _as_json(question.as_dict()["criteria"]))

    def raw(self) -> dict[str, Any]:
        """The question as `/v1/systemone` takes it."""
        return {
            "type": self.type,
            "instructions": self.instructions,
            "criteria": criteria_of(self.type, self.criteria),
        }


def questions_of_slots(slots: list[Slot]) -> dict[str, Any]:
    """The questions that are filled in, by their names.

    Raises:
        RequestError: there are none, or two of one name.
    """
    found: dict[str, Any] = {}
    for number, slot in enumerate(slots, 1):
        if slot.is_empty:
            continue
        name = slot.name.strip() or f"question {number}"
        if name in found:
            raise invalid(f"Two questions are named {name!r:.80}. Give each a name of its own.")
        found[name] = slot.raw()
    if not found:
        raise invalid("There is no question. Write what is asked, and its levels.")
    return found


def slots_of(questions: Mapping[str, Any] | None) -> list[Slot]:
    """Questions in as many fields as the page has; empty ones where there are fewer.

    Raises:
        RequestError: one of them is no question, or there are too many.
    """
    if questions is not None and len(questions) > SLOTS:
        raise invalid(f"There are {len(questions)} questions, and the page has room for {SLOTS}. Ask /v1/systemone.")
    try:
        filled = [Slot.of(Question.of(name, raw)) for name, raw in (questions or {}).items()]
    except ValueError as error:
        raise invalid(str(error)) from error
    return filled + [Slot()] * (SLOTS - len(filled))


def criteria_of(kind: str, text: str) -> Any:
    """The criteria that a text stands for.

    >>> criteria_of("score", "poor, fair, good")
    ['poor', 'fair', 'good']
    >>> criteria_of("choice", "billing: payments and refunds\\nother")
    {'billing': 'payments and refunds', 'other': None}

    Args:
        kind: the type of the question.
        text: as `WHAT_IS_WRITTEN` says, or JSON.
    """
    read = json_of(text)
    if read is not None or not text.strip():
        return read
    if kind == NUMBER:
        return text.strip()
    parts = [part.strip() for part in (text.splitlines() if "\n" in text.strip() else text.split(","))]
    parts = [part for part in parts if part]
    if kind == SCORE:
        return parts
    pairs = [part.partition(":") for part in parts]
    return {name.strip(): words.strip() or None for name, _, words in pairs}


def _in_lines(question: Question) -> str:
    if question.type == NUMBER:
        return ", ".join(question.names)
    if question.type == PREDICATE:
        pairs = zip(("true", "false"), question.options, strict=True)
        return "\n".join(f"{side}: {option.description}" for side, option in pairs if option.description)
    lines = [one.name if one.description is None else f"{one.name}: {one.description}" for one in question.options]
    plain = all(one.description is None and "," not in one.name for one in question.options)
    return (", " if plain else "\n").join(lines)


def _as_json(criteria: Any) -> str:
    return "" if criteria is None else json.dumps(criteria, ensure_ascii=False)


# The card of a model on the Hub is not asked for at every visit.
@lru_cache(maxsize=64)
def examples_of(model: ServedModel) -> tuple[str, ...]:
    """Texts to begin with: those of the model card's `widget`, and the form of the prompts of training.

    Args:
        model: with a folder, or a name on the Hub.
    """
    path = find_file(model.folder, CARD_NAME, {}) if model.folder else None
    given: Any = None
    if path is not None:
        with open(path, encoding="utf-8", errors="replace") as file:
            given = ModelCard(file.read(), ignore_metadata_errors=True).data.get("widget")
    found = [_text_of(one) for one in (given if isinstance(given, list) else [])]
    form = model.predictor.prompt_form
    if form.template is not None and len(form.template.columns) > 1:
        found.append(_as_json(dict.fromkeys(form.template.columns, "...")))
    elif form.template is None and form.shape is not None:
        found.append(form.shape if isinstance(form.shape, str) else _as_json(form.shape))
    return tuple(text for text in dict.fromkeys(found) if text)


def _text_of(entry: Any) -> str:
    """The text of an entry of a card's `widget`; empty where it has none."""
    if not isinstance(entry, dict):
        return ""
    if isinstance(entry.get("messages"), list):
        return _as_json(entry["messages"])
    return entry["text"] if isinstance(entry.get("text"), str) else ""


def usual_level(model: ServedModel) -> float | None:
    """The share that intervals cover where nothing else is asked for; None where a text alone gets no interval.

    Args:
        model: which may be calibrated, on rows that may be too few for a level.
    """
    for level in (0.9, 0.8, 0.5):
        with suppress(ValueError):
            if model.is_calibrated:
                calibration = model.calibration()
                calibration.check(level)
                # The group of a prompt is a column of its row.
                return None if calibration.groups is not None else level
            if model.question_calibration is not None:
                for one in model.question_calibration.questions.values():
                    one.check(level)
                return level
    return None


def fields_of(slot: Slot) -> tuple[str, str, str, str]:
    """Its fields in the order of the page."""
    return astuple(slot)
