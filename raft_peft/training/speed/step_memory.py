"""The memory of a training step without activation checkpointing, measured on short rows before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset

from raft_peft.data.batches import RegressionCollator
from raft_peft.data.preferences import REJECTED_IDS
from raft_peft.forward.completion import read_completion
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.forest import group_prompts
from raft_peft.grid.trie import Trie
from raft_peft.methods.readout import Readout

# AdamW keeps two numbers in float32 for each weight that is trained; other optimizers keep less.
_OPTIMIZER_BYTES = 8
# The most tokens of a row on which activations are measured. Those of longer rows follow from shorter ones.
_MEASURED = 128
# What a token costs where prompts are to share it, whatever that costs in the attention.
_ALWAYS = 1 << 40
# Encoded rows that are looked at together.
_SLICE = 4096


def bytes_of_step(trainer: Any) -> float:
    """What a training step takes beside the weights: activations, gradients and the optimizer's state, in bytes.

    A few short forward passes are run, and what they keep for their backward pass is counted. It is a polynomial of
    degree 2 in the length of the rows, and a line in their number, so that it follows for a batch of rows that are all
    as long as the longest. The model and the random numbers stay as they were.

    Args:
        trainer: a `RegressionAwareTrainer` whose model is on its device, with an encoded dataset and a readout.
    """
    args, model, readout = trainer.args, trainer.model, trainer.readout
    shares, reasoned = bool(args.padding_free), "reasoning_tokens" in trainer.train_dataset.column_names
    one_alone = reasoned and args.reasonings == "one"
    row, length, prompts = _longest(trainer.train_dataset, shares=shares, one_alone=one_alone)
    kept_logits = _reasoning_tokens(trainer.train_dataset, all_of_row=shares and not one_alone) if reasoned else 0
    multiple = args.pad_to_multiple_of or 1
    collate = RegressionCollator(pad_token_id=0)

    def kept(rows: int, tokens: int) -> int:
        repeated = row["input_ids"] * -(-tokens // len(row["input_ids"]))
        batch = collate([{**row, "input_ids": repeated[:tokens]}] * rows)
        # As where others are longer: without any padding, attention would do without a mask, which takes less.
        batch["attention_mask"][:, 0] = 0
        if kept_logits:
            tail = min(tokens - 1, math.ceil(kept_logits * tokens / length))
            batch["reasoning_mask"] = torch.ones(rows, tail, dtype=torch.bool)
        batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
        with trainer.accelerator.autocast():
            return kept_bytes(model, lambda: _forward(readout, model, batch))

    with _as_in_training(model, args.device):
        rows = args.per_device_train_batch_size * prompts
        activations = extrapolated(kept, rows, -(-length // multiple) * multiple)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return activations + sum(weight.nbytes + _OPTIMIZER_BYTES * weight.numel() for weight in trained)


def extrapolated(kept: Callable[[int, int], int], rows: int, length: int) -> float:
    """What a large batch keeps, from what small ones do.

    Args:
        kept: the bytes that are kept for so many rows of so many tokens.
        rows, length: of the large batch.
    """
    longest = max(8, min(length, _MEASURED))
    lengths = [longest // 4, longest // 2, longest]
    of_one = np.array([kept(1, tokens) for tokens in lengths], dtype=np.float64)
    # Copies of weights, as autocast makes them, are kept once for all rows.
    once = max(0.0, 2 * of_one[0] - kept(2, lengths[0]))
    a_row = float(np.polyval(np.polyfit(lengths, of_one - once, 2), length))
    # Layers that read tokens in chunks keep as much for a short row as for a whole chunk.
    in_proportion = float(of_one[-1] - once) * length / longest
    return once + rows * max(a_row, in_proportion)


def kept_bytes(model: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """The bytes that a forward pass keeps for its backward pass, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    # The storages are held, so that no later one is at the same address.
    kept: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def _forward(readout: Readout, model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
    """The forward pass of a training step on padded rows, which take the most memory."""
    rows, tail = (batch["input_ids"], batch["attention_mask"]), batch.get("reasoning_mask")
    if "target_ids" in batch:
        return read_completion(model, *rows, batch["target_ids"], tail=tail)
    head = readout.head
    trie = Trie.in_batch(batch) if head.reads_grid else None
    layout = readout.layouts.padded(model, trie)
    return read_final_position(model, *rows, trie, layout=layout, hidden_states=head.reads_hidden_states, tail=tail)


def _reasoning_tokens(dataset: Dataset, *, all_of_row: bool) -> int:
    """The most tokens of a reasoning, or of all that a row has, filled up to the longest: their logits are kept."""
    return max(max(counts) * (len(counts) if all_of_row else 1) for counts in dataset["reasoning_tokens"])


def _longest(dataset: Dataset, *, shares: bool, one_alone: bool) -> tuple[dict[str, Any], int, int]:
    """The longest of encoded prompts, without its label, its tokens, and how many of them are in a row.

    A preference has two prompts, and a row of typed questions or reasonings one for each. Where those of questions or
    reasonings share their beginning, they are one prompt of all of their distinct tokens; where one of them is taken
    at a time, it is the longest.
    """
    columns = dataset.select_columns(["input_ids"]).with_format("arrow")
    parts = [part["input_ids"].combine_chunks() for part in columns.iter(_SLICE)]
    names = [name for name in ("input_ids", "grid_token_ids", "target_ids") if name in dataset.column_names]
    whole = dataset.with_format(None)
    if REJECTED_IDS in dataset.column_names:
        # Both prompts of a pair are in a batch, each up to the length of the longest.
        row = max((row for row in whole), key=lambda row: max(len(row["input_ids"]), len(row[REJECTED_IDS])))
        longest = max(row["input_ids"], row[REJECTED_IDS], key=len)
        return {**{name: row[name] for name in names}, "input_ids": longest}, len(longest), 2
    if not pa.types.is_list(parts[0].type.value_type):
        lengths = np.concatenate([pc.list_value_length(part) for part in parts])
        place = int(lengths.argmax())
        return {name: whole[place][name] for name in names}, int(lengths[place]), 1
    # Of the row that has the most tokens.
    tokens = np.concatenate(
        [
            np.bincount(pc.list_parent_indices(part), pc.list_value_length(pc.list_flatten(part)), minlength=len(part))
            for part in parts
        ]
    )
    row = whole[int(tokens.argmax())]
    prompts = [np.array(ids) for ids in row["input_ids"]]
    at = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = {name: row[name][at] for name in names}
    if one_alone or not shares:
        return found, len(prompts[at]), 1 if one_alone else len(prompts)
    shared = group_prompts(prompts, prefix=0, token_cost=_ALWAYS).shared
    return found, sum(map(len, prompts)) - int(shared.sum()), 1


@contextmanager
def _as_in_training(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """For the time of a `with` block the model is in training; its modes and the random numbers come back."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.train()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
