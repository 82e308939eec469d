"""What is said of rows that are used, though something about them is odd."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from raft_peft.data.labels import label_range, range_of_grid
from raft_peft.data.prompts import EncodedPrompt
from raft_peft.data.thoughts import CURE
from raft_peft.grid import NumberGrid, number_text
from raft_peft.messages import warn

logger = logging.getLogger(__name__)

# The properties of an `EncodedPrompt` that something is said of.
REMARKABLE = ("was_cut", "was_trimmed", "is_in_thought", "lost_system", "reasoning_was_cut")


class EncodesPrompts(Protocol):
    """What encodes prompts: a [`PromptEncoder`], or a server.

    Attributes:
        grid: the numbers that may follow a prompt.
        max_length: the most tokens of a prompt; None for no limit.
    """

    grid: NumberGrid
    max_length: int | None


class Remarks:
    """Says, once of each kind, how many rows are odd.

    Args:
        whose: what the prompts and labels are of, as in "of the train dataset"; may be empty.
        encoder: which encoded the prompts.
        limited_by_grid: whether predictions stay within the grid's reach, so that a label beyond is worth a word.
        renormalize: whether predictions are renormalized over the grid.
    """

    def __init__(self, whose: str, encoder: EncodesPrompts, *, limited_by_grid: bool, renormalize: bool):
        self._whose = f" {whose}" if whose else ""
        self._max_length = encoder.max_length
        self._grid = encoder.grid
        self._limited_by_grid = limited_by_grid
        self._renormalize = renormalize
        self._said: set[str] = set()

    def on_prompts(
        self,
        rows: int,
        was_cut: int = 0,
        was_trimmed: int = 0,
        is_in_thought: int = 0,
        lost_system: int = 0,
        reasoning_was_cut: int = 0,
    ) -> None:
        """Say how many of so many prompts were cut, lost padding or an end, or end inside a thought."""
        prompts = f"of the {rows} prompts{self._whose}"
        if was_cut:
            lost = f", {lost_system} of them all or part of the system message" if lost_system else ""
            self._say(
                "cut",
                f"{was_cut} {prompts} are longer than `max_length={self._max_length}` and lost their beginning{lost}. "
                "Raise `max_length`, or shorten the prompts.",
            )
        if reasoning_was_cut:
            self._say(
                "reasoning cut",
                f"{reasoning_was_cut} {prompts} have a reasoning that is longer than `max_length={self._max_length}` "
                "leaves room for, and lost its end; the words that lead to the score stand behind what is left. Raise "
                "`max_length`, or shorten the reasonings.",
            )
        if was_trimmed:
            self._say(
                "trimmed",
                f"{was_trimmed} {prompts} are input_ids with padding, or with an end of sequence after the prompt, "
                "that no attention_mask masks. It was removed, since the number follows the prompt. Tokenize without "
                "padding and without an end.",
            )
        if is_in_thought:
            self._say(
                "thought",
                f"{is_in_thought} {prompts} end inside an open thought of a thinking model, where no answer is "
                f"expected. {CURE}",
            )

    def on_encoded(self, prompts: Sequence[EncodedPrompt]) -> None:
        """The same, of encoded prompts."""
        self.on_prompts(len(prompts), *(sum(getattr(one, name) for one in prompts) for name in REMARKABLE))

    def on_labels(self, labels: Sequence[float]) -> None:
        """Say how many labels lie outside the grid."""
        numbers = np.asarray(labels, dtype=np.float64)
        if not self._limited_by_grid or not len(numbers):
            return
        low, high = range_of_grid(self._grid)
        outside = int(np.sum((numbers < low) | (numbers > high)))
        if not outside:
            return
        labels_outside = (
            f"{outside} of the {len(numbers)} labels{self._whose} ({number_text(numbers.min())} to "
            f"{number_text(numbers.max())}) lie outside"
        )
        least, greatest = label_range(self._grid, renormalize=self._renormalize)
        if numbers.min() < least or numbers.max() > greatest:
            self._say(
                "out of reach",
                f"{labels_outside} what this grid can express, {number_text(least)} to {number_text(greatest)}. Scale "
                "the labels, or widen the grid.",
            )
        else:
            self._say(
                "off the grid",
                f"{labels_outside} the grid's own range, {number_text(low)} to {number_text(high)}: a prediction gets "
                "there only by probability off the grid, which counts as 0. Do the labels start at 0, and the grid "
                "at 1? Scale the labels, or widen the grid.",
            )

    def on_ratings(self, ratings: Iterable[Sequence[float] | None]) -> None:
        """Say how many rows have ratings outside the grid.

        Args:
            ratings: of each row; None for a row whose label is one number.
        """
        rated = [(min(values), max(values)) for values in ratings if values is not None]
        low, high = range_of_grid(self._grid)
        outside = sum(least < low or greatest > high for least, greatest in rated)
        if self._limited_by_grid and outside:
            least, greatest = min(least for least, _ in rated), max(greatest for _, greatest in rated)
            self._say(
                "ratings off the grid",
                f"{outside} of the {len(rated)} rows of ratings{self._whose} ({number_text(least)} to "
                f"{number_text(greatest)}) have some outside the grid's own range, {number_text(low)} to "
                f"{number_text(high)}. Scale the ratings, or widen the grid.",
            )

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            warn(logger, text)
