"""Batches: rows of different length, padded on the left so that the final position is the last column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from raft_peft.data.preferences import MARGIN, REJECTED_IDS, REJECTED_NUMBERS
from raft_peft.data.ratings import padded_ratings
from raft_peft.grid.trie import Trie, is_deep

# Fills the targets of a batch up to the longest; torch's losses leave it out by default.
IGNORED = -100

# What a prompt is in a batch with preferences. A rejected one follows the chosen one of its pair.
REJECTED_PROMPT, LABELLED_PROMPT, CHOSEN_PROMPT = -1, 0, 1


@dataclass
class RegressionCollator:
    """Makes a batch from encoded rows.

    Args:
        pad_token_id: fills the rows; masked out, so it may be the eos token.
        pad_to_multiple_of: rounds the length of the batch up to a multiple.
        preference_weight: what a preference counts in the loss, beside a row with a label.

    Returns:
        A dict of `input_ids` and `attention_mask` of shape (batch, length); `grid_token_ids` of shape (batch, grid),
        or where some numbers are several tokens the tensors of their [`Trie`], named `trie_...`; where the rows have
        a `label`, `labels`, float32 of shape (batch,); where some have ratings, `rating_values` and `rating_shares`,
        float32 of shape (batch, ratings), padded with the share 0; where they have a `weight`, `weights`, float32 of
        shape (batch,); and where they have `target_ids`, these, padded on the right with -100, of shape
        (batch, tokens).

        Of encoded preferences the batch holds both prompts, one below the other, with a label of NaN. Then it also
        has, each of shape (prompts,): `pair`, 1 for the chosen prompt of a pair, -1 for the rejected one, and 0 for
        one with a label; `margins`; `row`, the row of each prompt; and `weights`, by which each row counts once, or
        by its weight.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    preference_weight: float = 1.0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if REJECTED_IDS in rows[0]:
            return self._with_preferences(rows)
        return self._of_prompts(rows)

    def _with_preferences(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts: list[dict[str, Any]] = []
        for number, row in enumerate(rows):
            if not len(row[REJECTED_IDS]):
                prompts.append({"weight": 1.0, **row, "row": number, "pair": LABELLED_PROMPT})
                continue
            chosen = {**row, "row": number, "label": math.nan}
            ids = {"input_ids": row[REJECTED_IDS], "grid_token_ids": row[REJECTED_NUMBERS]}
            prompts.append({**chosen, "pair": CHOSEN_PROMPT, "weight": self.preference_weight})
            # The pair's loss is at its chosen prompt, and counts once.
            prompts.append({**chosen, **ids, "pair": REJECTED_PROMPT, "weight": 0.0})
        batch = self._of_prompts(prompts)
        batch["margins"] = torch.tensor([one[MARGIN] for one in prompts], dtype=torch.float32)
        for name in ("row", "pair"):
            batch[name] = torch.tensor([one[name] for one in prompts])
        return batch

    def _of_prompts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
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
        if any(row.get("rating_values") is not None for row in rows):
            batch |= _ratings_of(rows)
        if "weight" in rows[0]:
            batch["weights"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        if "target_ids" in rows[0]:
            target_ids = [torch.as_tensor(row["target_ids"]) for row in rows]
            batch["target_ids"] = pad_sequence(target_ids, batch_first=True, padding_value=IGNORED)
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
        if self.pad_to_multiple_of is not None:
            padded = pad(padded, (-padded.shape[1] % self.pad_to_multiple_of, 0), value=value)
        return padded


def _ratings_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The ratings of rows; a label that is one number is one rating."""
    rated = [row.get("rating_values") is not None for row in rows]
    values, shares = padded_ratings(
        [row["rating_values"] if one else [row["label"]] for row, one in zip(rows, rated, strict=True)],
        [row["rating_shares"] if one else [1.0] for row, one in zip(rows, rated, strict=True)],
    )
    return {"rating_values": values, "rating_shares": shares}


def batches_by_length(
    lengths: Sequence[int], batch_size: int, batch_tokens: int, prompts: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Split rows into batches of like length, the longest first, so that what needs most memory comes first.

    >>> list(batches_by_length([2, 5, 3, 1], batch_size=3, batch_tokens=6))
    [[1], [2, 0], [3]]
    >>> list(batches_by_length([2, 5, 3, 1], batch_size=4, batch_tokens=20, prompts=[1, 2, 2, 1]))
    [[1, 2], [0, 3]]

    Args:
        lengths: tokens of each row.
        batch_size: the most prompts of a batch, where each row counts as its fullest; a row of more is a batch of its
            own.
        batch_tokens: the most tokens of a batch, with padding; a longer row is a batch of its own.
        prompts: how many prompts are in each row, by which they are sorted first; by default one.

    Returns:
        The indices of each batch's rows.
    """
    counts = [1] * len(lengths) if prompts is None else prompts
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-counts[row], -lengths[row])):
        grown = [*batch, row]
        longest = max(lengths[other] for other in grown)
        if batch and (len(grown) * counts[batch[0]] > batch_size or len(grown) * longest > batch_tokens):
            yield batch
            grown = [row]
        batch = grown
    if batch:
        yield batch


def rows_that_count(
    accelerator: Any, batch: dict[str, torch.Tensor], dataset_rows: int | None, tp_size: int = 1
) -> torch.Tensor:
    """Which examples of the batch that was fetched last are not of repeated rows, bools of shape (batch,).

    The last batches of an epoch are filled with rows of its beginning. They would weigh twice, and the run would
    depend on the number of processes.

    Args:
        accelerator: which hands out the batches.
        batch: of this process.
        dataset_rows: the rows of an epoch; None where they are not known, or the last of them are dropped.
        tp_size: the processes that share their rows.
    """
    # Several questions are of one row.
    row_of = batch.get("row", torch.arange(len(batch["input_ids"])))
    rows = int(row_of[-1]) + 1
    processes = accelerator.num_processes // tp_size
    counts = torch.ones(len(row_of), dtype=torch.bool)
    if processes == 1 or not accelerator.gradient_state.end_of_dataloader:
        return counts
    # Accelerate knows it too, but not in an epoch that training goes on in the middle of
    remainder = accelerator.gradient_state.remainder if dataset_rows is None else dataset_rows % (rows * processes)
    if remainder <= 0:
        return counts
    first = accelerator.process_index // tp_size * rows
    return first + row_of.cpu() < remainder
