"""Batches of rows with reasonings: the reasonings of several rows one below the other, each with its score."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from raft_peft.data.batches import RegressionCollator

# The columns of an encoded row that have an entry for each reasoning.
OF_REASONINGS = ("input_ids", "grid_token_ids", "target_ids", "reasoning_tokens")


@dataclass
class ReasoningCollator(RegressionCollator):
    """Makes a batch from encoded rows, each with the prompts behind which its score stands, one for each reasoning.

    Args:
        pad_token_id, pad_to_multiple_of: as for [`RegressionCollator`].
        one_each_epoch: take one reasoning of each row, another in each epoch, until all were taken. By default all
            reasonings are taken.
        seed: decides with which reasoning a row begins.

    Returns:
        What [`RegressionCollator`] gives, whose first dimension is reasonings, those of one row together; `row`, the
        row of the batch, of shape (reasonings,); and `reasoning_mask`, which of the last tokens of each are its
        reasoning with the words that lead to the score, padded on the left, of shape (reasonings, tokens).
    """

    one_each_epoch: bool = False
    seed: int = 0
    # Shared with the workers of a data loader, which go on from one epoch to the next.
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        examples = [
            {**row, **{name: row[name][place] for name in OF_REASONINGS if name in row}, "row": index}
            for index, row in enumerate(rows)
            for place in self._places(row)
        ]
        batch = super().__call__(examples)
        batch["row"] = torch.tensor([one["row"] for one in examples])
        counts = torch.tensor([one["reasoning_tokens"] for one in examples])
        batch["reasoning_mask"] = torch.arange(int(counts.max()), 0, -1) <= counts.unsqueeze(1)
        return batch

    def taking_one(self) -> ReasoningCollator:
        """The same, of one reasoning of each row in an epoch."""
        return replace(self, one_each_epoch=True)

    def _places(self, row: Mapping[str, Any]) -> Sequence[int]:
        count = len(row["input_ids"])
        if not self.one_each_epoch:
            return range(count)
        first = zlib.crc32(np.asarray(row["input_ids"][0], np.int64).tobytes(), self.seed)
        return [(first + int(self.epoch)) % count]
