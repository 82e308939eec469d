"""The answer to a typed question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a model answers to a typed question.

    Attributes:
        value: the expected level counted from 0, the probability of yes, the expected number, or for a choice the
            likeliest option.
        probabilities: of each level, of yes and no, of each number or option, in their order; they sum to one.
        label_mass: their probability over the whole vocabulary, before they were divided by it.
        low, high: of a score or a number the ends of the interval, where one was asked for; else None.
        options: of a choice or a question of yes and no the options that hold the true one as often as was asked for,
            in their order; else None.
    """

    value: float | str
    probabilities: dict[str, float]
    label_mass: float
    low: float | None = None
    high: float | None = None
    options: tuple[str, ...] | None = None
