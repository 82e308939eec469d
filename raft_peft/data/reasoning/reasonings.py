"""The reasonings of a row, and the words between a reasoning and its score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft_peft.data.thoughts import closing_mark_of, is_open_behind
from raft_peft.grid import NumberGrid

# The column of a row.
REASONING = "reasoning"
SCORE_PREFIX = "\n[RESULT] "

# A score in the last words of a text, as "So the overall score is 4."
_SCORE_AT_END = re.compile(
    r"\b(?:score|rating|grade|result|verdict)s?\b[^.!?\n]{0,24}?[\s:=*(](?P<number>[-+]?\d+(?:\.\d+)?)"
    r"(?:\s*(?:/|out of)\s*\d+)?[\s.!*)\]]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScorePrefix:
    """The words that lead from a reasoning to its score.

    Attributes:
        text: these words, with white space before and behind them. What is behind belongs to the number.
    """

    text: str

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise ValueError(
                f"`score_prefix={self.text!r}` has no words, by which the end of a reasoning could be told. Write "
                f"some that no reasoning holds, such as {SCORE_PREFIX!r}."
            )
        if "\\n" in self.text:
            raise ValueError(
                f"`score_prefix={self.text!r}` holds a backslash and an n, and no line break. In a shell, write it as "
                "$'\\n[RESULT] '."
            )

    @property
    def words(self) -> str:
        """The text without the white space behind it."""
        return self.text.rstrip()

    @property
    def separator(self) -> str:
        """The white space behind the words, before the number."""
        return self.text[len(self.words) :]

    @property
    def end_of_reasoning(self) -> str:
        """The text at which a reasoning that is being written ends: the end of a thought, or else all of the words."""
        return closing_mark_of(self.words) or self.words.strip()

    def behind(self, reasoning: str | None) -> str:
        """A reasoning and the words behind it; without a reasoning, the words alone."""
        return self.words if reasoning is None else reasoning.strip() + self.words

    def is_in_thought(self, reasoning: str | None, *, opened: bool) -> bool:
        """Whether a thought is open where the number begins.

        Args:
            reasoning: that stands before it.
            opened: whether the prompt ends inside a thought.
        """
        return is_open_behind(self.behind(reasoning), opened=opened)


def reasonings_of(row: Mapping[str, Any]) -> list[str]:
    """The reasonings of a row, none where its column is missing or null.

    Raises:
        ValueError: they are no texts, or some are empty.
    """
    given: Any = row.get(REASONING)
    given = given.tolist() if hasattr(given, "tolist") else given
    if given is None or (isinstance(given, float) and given != given):
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"The reasoning is {given!r:.80}. It must be a text, or a list of texts.")
    if not texts or not all(one.strip() for one in texts):
        raise ValueError("A reasoning is empty. Write one, or leave the column null where a row has none.")
    return list(texts)


def check_reasoning(reasoning: str, prefix: ScorePrefix, grid: NumberGrid) -> None:
    """Refuse a reasoning in which the score stands already.

    Raises:
        ValueError: it holds the words that lead to the score, or ends in a number of the grid that is called a score.
    """
    words = prefix.words.strip()
    if words in reasoning:
        raise ValueError(
            f"The reasoning already holds the words that lead to the score, {words!r}. Keep what stands before them, "
            f"and put the score into the label: row['{REASONING}'].split({words!r})[0]."
        )
    found = _SCORE_AT_END.search(reasoning[-80:])
    if found and float(found["number"]) in grid.values:
        raise ValueError(
            f"The reasoning ends in its score already, {found.group().strip()!r}, so that the model would learn to "
            "copy it. Leave out that sentence."
        )
