"""The target of a question: a number, a name, ratings, or shares, as ratings of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raft_peft.data.questions.question import CHOICE, NO, NUMBER, PREDICATE, SCORE, YES, Question
from raft_peft.data.ratings import Ratings, is_ratings
from raft_peft.grid import meant_number, number_text

# What `target_as_dict` writes.
_WRITTEN = ("values", "shares", "count")
_SIDES = {YES: 1.0, "true": 1.0, NO: 0.0, "false": 0.0}


def read_target(question: Question, raw: Any) -> Ratings:
    """What a row holds as the target of a question.

    Args:
        question: which was asked.
        raw: for a score a number from 0 to the number of levels less 1, or a level's name; for a predicate a boolean
            or the probability of yes; for a choice an option's name; for a number a number. Or a list of such, by
            several raters; or a mapping of such to their shares, in which a key that is a text is a name, where it
            may be one.

    Returns:
        Ratings in the unit of `question.values`; of a choice the places of its options. A target that is one thing is
        one rating.

    Raises:
        ValueError: it is nothing of these, or outside the values of the question.
    """

    def number(one: Any) -> float:
        return _number_of(question, one)

    if isinstance(raw, Ratings):
        return raw
    if isinstance(raw, Mapping) and set(raw) == set(_WRITTEN) and isinstance(raw["values"], list):
        target = Ratings(tuple(raw["values"]), tuple(raw["shares"]), raw["count"])
        _check_within(question, target.values)
    elif isinstance(raw, Mapping):
        target = Ratings.of({number(_key(question, key, raw)): share for key, share in _named(raw).items()})
    elif is_ratings(raw):
        target = Ratings.of(raw, number)
    else:
        target = Ratings((number(raw),), (1.0,), 1)
    return target


def target_as_dict(target: Ratings) -> dict[str, Any]:
    """A target as JSON can hold it, from which `read_target` reads it again."""
    return dict(zip(_WRITTEN, (list(target.values), list(target.shares), target.count), strict=True))


def _named(raw: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The shares without those that are None, which a table adds for the options of other rows."""
    named = {key: share for key, share in raw.items() if share is not None}
    if not named:
        raise ValueError("the target is an empty mapping of shares. Leave the target out.")
    return named


def _key(question: Question, key: Any, raw: Mapping[Any, Any]) -> Any:
    """The key of a share: a name of the question, or a number that JSON wrote as a text."""
    if not isinstance(key, str) or question.type == CHOICE:
        return key
    if question.type == PREDICATE and key in _SIDES:
        return key
    if question.type != NUMBER and all(name in question.names for name in _named(raw)):
        return key
    try:
        return float(key)
    except ValueError:
        return key


def _number_of(question: Question, raw: Any) -> float:
    """A rating as a number of the question's values."""
    if isinstance(raw, str) and question.type == PREDICATE and raw in _SIDES:
        return _SIDES[raw]
    if isinstance(raw, str):
        names = dict(zip(question.names, question.values, strict=True))
        if raw in names and question.type != PREDICATE:
            return names[raw]
        raise ValueError(f"the target {raw!r:.80} is not one of {_shown(question)}. Write one of these.")
    if question.is_choice:
        raise ValueError(f"the target {raw!r:.80} is no option. Write the name of one of {_shown(question)}.")
    value = _as_number(question, raw)
    _check_within(question, [value])
    return value


def _check_within(question: Question, values: Sequence[float]) -> None:
    low, high = min(question.values), max(question.values)
    outside = next((value for value in values if not low <= value <= high), None)
    if outside is not None:
        unit = "a probability is" if question.type == PREDICATE else "its values are"
        counted = "Levels are counted from 0. " if question.type == SCORE else ""
        raise ValueError(
            f"the target {number_text(outside)} is outside: {unit} from {number_text(low)} to {number_text(high)}. "
            f"{counted}Scale or repair it."
        )


def _as_number(question: Question, raw: Any) -> float:
    if isinstance(raw, bool) or "bool" in str(getattr(raw, "dtype", "")):
        if question.type == PREDICATE:
            return float(raw)
        raise ValueError(f"the target is {bool(raw)}, and the question is no predicate. Write a number.")
    try:
        value = meant_number(raw)
    # A RuntimeError is torch's, of a tensor that holds several numbers.
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"the target {raw!r:.80} is not a number. {_what_is_meant(question)}") from None
    if not math.isfinite(value):
        raise ValueError(f"the target is {value}. Leave it out, or repair it.")
    return value


def _what_is_meant(question: Question) -> str:
    if question.type == PREDICATE:
        return "Write true, false, or the probability of yes."
    if question.type == NUMBER:
        return "Write a number."
    return f"Write a number from 0 to {len(question.options) - 1}, or a level: {_shown(question)}."


def _shown(question: Question) -> str:
    names = list(question.names) if question.type != PREDICATE else [YES, NO, "true", "false"]
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
