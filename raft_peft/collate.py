"""Batches: rows of different length, padded on the left so that the final position is the last column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from raft_peft.completion import IGNORED
from raft_peft.trie import Trie, is_deep


@dataclass
class RegressionCollator:
    """Makes a batch from encoded rows.

    Args:
        pad_token_id: fills the rows; masked out, so it may be the eos token.
        pad_to_multiple_of: rounds the length of the batch up to a multiple.

    Returns:
        A dict of `input_ids` and `attention_mask` of shape (batch, length); `grid_token_ids` of shape (batch, grid),
        or where some numbers are several tokens the tensors of their [`Trie`], named `trie_...`; where the rows have
        a `label`, `labels`, float32 of shape (batch,); and where they have `target_ids`, these, padded on the right
        with -100, of shape (batch, tokens).
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = [torch.as_tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": self._pad(input_ids, self.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(ids) for ids in input_ids], 0),
        }
        grids = [tuple(map(tuple, row["grid_token_ids"])) for row in rows]
        if any(is_deep(grid) for grid in grids):
            batch |= Trie.of(grids).as_batch()
        else:
            batch["grid_token_ids"] = torch.tensor(grids).squeeze(-1)
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.float32)
        if "target_ids" in rows[0]:
            target_ids = [torch.as_tensor(row["target_ids"]) for row in rows]
            batch["target_ids"] = pad_sequence(target_ids, batch_first=True, padding_value=IGNORED)
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
        if self.pad_to_multiple_of is not None:
            padded = pad(padded, (-padded.shape[1] % self.pad_to_multiple_of, 0), value=value)
        return padded
