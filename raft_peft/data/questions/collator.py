"""Batches of typed questions: the questions of several rows one below the other, each with options of its own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from raft_peft.data.batches import RegressionCollator

# A text that an option may not be written as.
NO_OPTION = -1
CHOICE = "choice"


@dataclass
class QuestionCollator(RegressionCollator):
    """Makes a batch from encoded rows, each a text with its questions.

    Args:
        pad_token_id, pad_to_multiple_of: as for [`RegressionCollator`].
        options: pad the options of each question to so many; by default to the most of the batch.
        weights: what a question counts in the loss, by its id; None where each counts 1.

    Returns:
        A dict of tensors whose first dimension is questions, those of one row together. `input_ids`,
        `attention_mask`, `grid_token_ids` or `trie_...` are as [`RegressionCollator`] gives them, for each text in
        place of each number. `option_of_text`, the option that each text stands for, -1 for padding, of shape
        (questions, texts); `option_values`, the number of each option, NaN for padding, of shape (questions,
        options); `is_choice`, of shape (questions,); `row`, the row of the batch, and `place`, the place among the
        questions of this row, of shape (questions,); `question`, a number for the id, see [`id_number`]. And where
        there are targets, `labels`, `rating_values`, `rating_shares` and `weights`.
    """

    options: int | None = None
    weights: Mapping[str, float] | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        questions = [
            {**{name: values[place] for name, values in row.items()}, "row": index, "place": place}
            for index, row in enumerate(rows)
            for place in range(len(row["input_ids"]))
        ]
        texts = max(len(one["grid_token_ids"]) for one in questions)
        # Padding is a text of one token, which stands for no option.
        batch = super().__call__(
            [
                {**one, "grid_token_ids": [*one["grid_token_ids"], *[[0]] * (texts - len(one["grid_token_ids"]))]}
                for one in questions
            ]
        )
        batch["option_of_text"] = _padded([one["option_of_text"] for one in questions], NO_OPTION, torch.long)
        values = _padded([one["option_values"] for one in questions], torch.nan, torch.float32)
        missing = 0 if self.options is None else self.options - values.shape[1]
        batch["option_values"] = pad(values, (0, missing), value=torch.nan)
        batch["is_choice"] = torch.tensor([one["type"] == CHOICE for one in questions])
        for name in ("row", "place"):
            batch[name] = torch.tensor([one[name] for one in questions])
        if self.weights is not None and "labels" in batch:
            batch["weights"] = torch.tensor([float(self.weights.get(one["id"], 1)) for one in questions])
        batch["question"] = torch.tensor([id_number(one["id"]) for one in questions])
        return batch


def id_number(question_id: str) -> int:
    """A number for the id of a question, the same in every process."""
    return zlib.crc32(question_id.encode())


def _padded(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> torch.Tensor:
    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value)
