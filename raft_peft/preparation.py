"""Datasets: from the user's rows to encoded rows of `input_ids`, `grid_token_ids` and a float `label`."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from raft_peft.grid import number_text
from raft_peft.labels import check_within, has_label, label_range, read_labels, target_texts
from raft_peft.prompts import PromptEncoder

logger = logging.getLogger(__name__)

ENCODED_COLUMNS = ["input_ids", "grid_token_ids", "label", "target_ids"]


def first_row(dataset: Dataset | IterableDataset, name: str) -> dict[str, Any]:
    """The first row of a dataset.

    Raises:
        ValueError: the dataset is empty.
    """
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"The {name} dataset is empty. It needs at least one row of `prompt` and `label`.")
    return row


def is_encoded(row: dict[str, Any]) -> bool:
    """Whether a row comes from `encode_dataset`."""
    return "input_ids" in row and "grid_token_ids" in row


def encode_dataset(
    dataset: Dataset | IterableDataset,
    name: str,
    encoder: PromptEncoder,
    *,
    label_column: str,
    require_label: bool = True,
    renormalize: bool = False,
    with_target_text: bool = False,
    within_grid: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Encode every row, check every label, and say how many rows were cut or cannot be expressed.

    Args:
        dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a label.
        name: what to call the dataset in messages.
        encoder: encodes the prompts.
        label_column: the column of the label; a numeric `completion` stands in for it.
        require_label: whether rows without any label are an error, or are encoded without.
        renormalize: whether predictions are renormalised over the grid, which decides the labels within reach.
        with_target_text: whether to encode the label as text too, with the end-of-sequence token behind it.
        within_grid: whether a label outside the grid's range is an error, not a warning.
        num_proc: processes to encode with (datasets of known length only).

    Returns:
        A dataset of `input_ids`, `grid_token_ids`, and, where the rows have a label, `label` as float64 and where
        asked for `target_ids`.

    Raises:
        ValueError: the dataset is empty, holds images, or has rows that cannot be encoded or have no usable label.
    """
    row = first_row(dataset, name)
    if is_encoded(row):
        return dataset
    if "image" in row or "images" in row:
        raise ValueError(
            f"The {name} dataset has images, and the final-position loss reads text only. Drop the image column and "
            "describe the image in the prompt."
        )
    if "prompt" not in row and "input_ids" not in row:
        raise ValueError(
            f"The {name} dataset has the columns {sorted(row)}, and neither `prompt` nor `input_ids`. Rename the "
            "column of the text to `prompt`: dataset.rename_column('text', 'prompt')."
        )
    labelled = has_label(row, label_column)
    if require_label and not labelled:
        raise ValueError(
            f"The {name} dataset has the columns {sorted(row)}, and no label in {label_column!r}. Rename the column "
            f"of the target to {label_column!r}, or set label_column to its name."
        )

    if with_target_text and encoder.tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token to put behind the target. Set tokenizer.eos_token."
        )

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        labels = read_labels(rows, encoder.grid, label_column, indices[0]) if labelled else []
        if within_grid:
            check_within(labels, encoder.grid, indices[0])
        targets = target_texts(labels, encoder.grid, indices[0]) if labelled and with_target_text else None
        prompts = encoder.encode(rows, indices[0], targets)
        encoded: dict[str, list] = {
            "input_ids": [prompt.input_ids for prompt in prompts],
            "grid_token_ids": [prompt.grid_token_ids for prompt in prompts],
            "was_cut": [prompt.was_cut for prompt in prompts],
        }
        if labelled:
            encoded["label"] = labels
        if targets is not None:
            encoded["target_ids"] = [[*prompt.target_ids, encoder.tokenizer.eos_token_id] for prompt in prompts]
        return encoded

    # Written out, since datasets would infer integers from a first batch of whole labels and cast the rest to them.
    features = {"input_ids": List(Value("int64")), "grid_token_ids": List(Value("int64")), "was_cut": Value("bool")}
    if labelled:
        features["label"] = Value("float64")
        if with_target_text:
            features["target_ids"] = List(Value("int64"))
    options: dict[str, Any] = {
        "batched": True,
        "with_indices": True,
        "remove_columns": list(row),
        "features": Features(features),
    }
    if isinstance(dataset, Dataset):
        options |= {"num_proc": num_proc, "desc": f"Tokenizing {name} dataset"}
    encoded = dataset.map(encode, **options)
    if isinstance(encoded, Dataset):
        _report(encoded, name, encoder, renormalize=renormalize)
    return encoded.remove_columns("was_cut")


def _report(encoded: Dataset, name: str, encoder: PromptEncoder, *, renormalize: bool) -> None:
    cut = int(np.sum(encoded["was_cut"]))
    if cut:
        logger.warning(
            "%d of the %d prompts of the %s dataset are longer than max_length=%d and lost their beginning. Raise "
            "max_length, or shorten the prompts.",
            cut,
            len(encoded),
            name,
            encoder.max_length,
        )
    if "label" not in encoded.column_names:
        return
    low, high = label_range(encoder.grid, renormalize=renormalize)
    labels = np.asarray(encoded["label"])
    outside = int(np.sum((labels < low) | (labels > high)))
    if outside:
        logger.warning(
            "%d of the %d labels of the %s dataset (%s to %s) lie outside what this grid can express, %s to %s. "
            "Scale the labels, or widen the grid.",
            outside,
            len(labels),
            name,
            number_text(labels.min()),
            number_text(labels.max()),
            number_text(low),
            number_text(high),
        )
