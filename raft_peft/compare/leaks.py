"""Rows of the test that are among those that a method is trained or chosen on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict

TEST = "test"


@dataclass(frozen=True)
class Leak:
    """Rows of a split whose prompt is that of a test row.

    Attributes:
        split: train or validation.
        rows, of_rows: how many rows of the split these are, and how many it has.
        test_rows, of_test_rows: how many test rows have such a prompt, and how many there are.
        row, test_row: the first of each, counted from 0.
        prompt: of that test row.
        dropped: whether the rows of the split were removed.
    """

    split: str
    rows: int
    of_rows: int
    test_rows: int
    of_test_rows: int
    row: int
    test_row: int
    prompt: str
    dropped: bool

    def __str__(self) -> str:
        found = (
            f"{self.rows:,} of the {self.of_rows:,} {self.split} rows have the prompt of a test row "
            f"({self.test_rows:,} of {self.of_test_rows:,}), such as row {self.row} that of test row {self.test_row}: "
            f"{self.prompt!r:.200}. "
        )
        if self.dropped:
            return found + f"They were removed from the {self.split} rows."
        harm = {
            "train": "A method that remembers them seems better on the test than it is.",
            "validation": "The best step and learning rate are then chosen on test rows.",
        }
        return found + harm[self.split]


def find_leaks(dataset: DatasetDict, *, drop: bool) -> tuple[DatasetDict, list[Leak]]:
    """What train and validation have in common with the test, and the dataset, without these rows if they are dropped.

    Prompts are the same if they differ in case and white space alone. No test row is ever removed.

    Args:
        dataset: `train`, `validation` and `test`, of `prompt`, a text or the messages of a chat.
        drop: whether to remove the rows from train and validation.

    Raises:
        ValueError: none are left.
    """
    tested = _rows_by_prompt(dataset[TEST])
    found, leaks = dict(dataset), []
    for split in ("train", "validation"):
        by_prompt = _rows_by_prompt(dataset[split])
        common = [prompt for prompt in by_prompt if prompt in tested]
        if not common:
            continue
        leaked = {row for prompt in common for row in by_prompt[prompt]}
        test_row = tested[common[0]][0]
        leaks.append(
            Leak(
                split,
                len(leaked),
                len(dataset[split]),
                sum(len(tested[prompt]) for prompt in common),
                len(dataset[TEST]),
                by_prompt[common[0]][0],
                test_row,
                _text(dataset[TEST][test_row]["prompt"]),
                drop,
            )
        )
        if drop:
            kept = [row for row in range(len(dataset[split])) if row not in leaked]
            if not kept:
                raise ValueError(f"All {split} rows have the prompt of a test row, so that `drop_leaks` leaves none.")
            found[split] = dataset[split].select(kept)
    return DatasetDict(found), leaks


def _rows_by_prompt(rows: Dataset) -> dict[str, list[int]]:
    """The rows of each prompt, by its text without differences of case and white space."""
    found: dict[str, list[int]] = {}
    for row, prompt in enumerate(rows["prompt"]):
        found.setdefault(" ".join(_text(prompt).split()).casefold(), []).append(row)
    return found


def _text(prompt: Any) -> str:
    """A prompt as one text; of a chat its messages, one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
