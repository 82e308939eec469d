"""Datasets: from the user's rows to encoded rows of `input_ids`, `grid_token_ids` and a float `label`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from raft_peft.data.labels import check_within, has_label, label_range, read_labels, target_texts
from raft_peft.data.prompts import EncodedPrompt, PromptEncoder, rows_error
from raft_peft.forward.decoding import MAX_NEW_TOKENS
from raft_peft.grid import number_text

if TYPE_CHECKING:
    from raft_peft.methods import Method

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


def spread_rows(dataset: Any, count: int) -> list[dict[str, Any]]:
    """At most so many rows from all over a dataset; of one that can only be read from its beginning, the first."""
    if isinstance(dataset, IterableDataset):
        return first_rows(dataset, count)
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return list(dataset.select(places.tolist()))


def first_rows(dataset: Any, count: int) -> list[dict[str, Any]]:
    """The first rows of a dataset, at most so many."""
    return list(itertools.islice(dataset, count))


def encode_dataset(
    dataset: Dataset | IterableDataset,
    name: str,
    encoder: PromptEncoder,
    *,
    label_column: str,
    require_label: bool = True,
    method: Method,
    renormalize: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Encode every row, check every label, and say how many rows were cut or cannot be expressed.

    Args:
        dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a label.
        name: what to call the dataset in messages.
        encoder: encodes the prompts.
        label_column: the column of the label; a numeric `completion` stands in for it.
        require_label: whether rows without any label are an error, or are encoded without.
        method: decides whether the label is encoded as text too, with the end-of-sequence token behind it, and which
            labels are within reach.
        renormalize: whether predictions are renormalised over the grid, which also decides the labels within reach.
        num_proc: processes to encode with (datasets of known length only).

    Returns:
        A dataset of `input_ids`, `grid_token_ids`, and, where the rows have a label, `label` as float64 and where
        asked for `target_ids`.

    Raises:
        ValueError: the dataset is empty, holds images, or has rows that cannot be encoded or have no usable label.
    """
    row = first_row(dataset, name)
    if "grid_token_ids" in row:
        raise ValueError(
            f"The {name} dataset was encoded by another trainer, for its grid and method. Pass the rows themselves, "
            "with `prompt` and a label."
        )
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
    if not require_label:  # a test set may hold an empty column
        labelled = row.get(label_column) is not None or row.get("completion") is not None
    if require_label and not labelled:
        raise ValueError(
            f"The {name} dataset has the columns {sorted(row)}, and no label in {label_column!r}. Rename the column "
            f"of the target to {label_column!r}, or set label_column to its name."
        )
    if method.trains_text and encoder.tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token to put behind the target. Set tokenizer.eos_token."
        )

    reach = label_range(encoder.grid, renormalize=renormalize) if method.limited_by_grid else None
    warnings = _Warnings(name, encoder, reach)

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        labels = read_labels(rows, encoder.grid, label_column, indices[0]) if labelled else []
        if method.labels_within_grid:
            check_within(labels, encoder.grid, indices[0])
        targets = target_texts(labels, encoder.grid, indices[0]) if labelled and method.trains_text else None
        prompts = encoder.encode(rows, indices[0], targets)
        encoded: dict[str, list] = {
            "input_ids": [prompt.input_ids for prompt in prompts],
            "grid_token_ids": [prompt.grid_token_ids for prompt in prompts],
            "was_cut": [prompt.was_cut for prompt in prompts],
        }
        if labelled:
            encoded["label"] = labels
        if targets is not None:
            check_target_lengths(prompts, targets, indices[0])
            encoded["target_ids"] = [[*prompt.target_ids, encoder.tokenizer.eos_token_id] for prompt in prompts]
        if isinstance(dataset, IterableDataset):  # whose rows are not counted: the first of each kind is said
            warnings.warn(encoded, labels)
        return encoded

    # Written out, since datasets would infer integers from a first batch of whole labels and cast the rest to them.
    features = {
        "input_ids": List(Value("int64")),
        "grid_token_ids": List(List(Value("int32"))),
        "was_cut": Value("bool"),
    }
    if labelled:
        features["label"] = Value("float64")
        if method.trains_text:
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
        warnings.warn(encoded, encoded["label"] if labelled else [])
    return encoded.remove_columns("was_cut")


def check_target_lengths(prompts: Sequence[EncodedPrompt], targets: Sequence[str], first_row: int = 0) -> None:
    """Raise a ValueError that names the rows whose target's text is longer than what is decoded in prediction."""
    errors = [
        (
            row,
            f"the target {target!r} is {len(prompt.target_ids)} tokens, and {MAX_NEW_TOKENS} are decoded in "
            "prediction. Round or scale the label.",
        )
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True), first_row)
        if len(prompt.target_ids) > MAX_NEW_TOKENS
    ]
    if errors:
        raise rows_error(errors)


class _Warnings:
    """Says, once each, how many rows were cut and how many labels are out of reach."""

    def __init__(self, name: str, encoder: PromptEncoder, reach: tuple[float, float] | None):
        self.name = name
        self.max_length = encoder.max_length
        self.reach = reach
        self.said: set[str] = set()

    def warn(self, encoded: Mapping[str, Any], labels: Sequence[float]) -> None:
        rows = len(encoded["was_cut"])
        cut = int(np.sum(encoded["was_cut"]))
        if cut:
            self._say(
                "cut",
                f"{cut} of the {rows} prompts of the {self.name} dataset are longer than "
                f"max_length={self.max_length} and lost their beginning. Raise max_length, or shorten the prompts.",
            )
        if self.reach is None or not len(labels):
            return
        low, high = self.reach
        numbers = np.asarray(labels)
        outside = int(np.sum((numbers < low) | (numbers > high)))
        if outside:
            self._say(
                "out of reach",
                f"{outside} of the {rows} labels of the {self.name} dataset ({number_text(numbers.min())} to "
                f"{number_text(numbers.max())}) lie outside what this grid can express, {number_text(low)} to "
                f"{number_text(high)}. Scale the labels, or widen the grid.",
            )

    def _say(self, kind: str, text: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            logger.warning(text)
