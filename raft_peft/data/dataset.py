"""Datasets: from the user's rows to encoded rows of `input_ids`, `grid_token_ids` and a float `label`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher

from raft_peft.data.labels import (
    LabelColumn,
    check_within,
    means_of,
    ratings_among,
    read_targets,
    target_texts,
    written_labels,
)
from raft_peft.data.limits import ModelLimits
from raft_peft.data.preferences import (
    PREFERENCE_COLUMNS,
    REJECTED_IDS,
    REJECTED_NUMBERS,
    PreferenceEncoder,
    PreferenceWriter,
)
from raft_peft.data.prompts import EncodedPrompt, PromptEncoder, rows_error
from raft_peft.data.ratings import check_ratings_within, weights_of
from raft_peft.data.reasoning.rows import spread_reasonings
from raft_peft.data.remarks import REMARKABLE, Remarks
from raft_peft.data.rows import as_dataset, features_of, unformatted
from raft_peft.forward.decoding import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from raft_peft.methods import Method

ENCODED_COLUMNS = [
    *("input_ids", "grid_token_ids", "label", "target_ids", "rating_values", "rating_shares", "weight"),
    *PREFERENCE_COLUMNS,
]


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
        return first_rows(unformatted(dataset), count)
    places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return list(unformatted(dataset.select(places.tolist())))


def first_rows(dataset: Any, count: int) -> list[dict[str, Any]]:
    """The first rows of a dataset, at most so many."""
    return list(itertools.islice(dataset, count))


def check_read_once(dataset: Any, name: str, *, processes: int, workers: int) -> None:
    """Refuse to evaluate a stream of which several readers would read rows twice, or in another order.

    Args:
        dataset: any; only a stream is refused.
        name: what to call it in messages.
        processes: that evaluate together.
        workers: of the data loader of each.

    Raises:
        ValueError: it is a stream, and would not be read once and in order.
    """
    if not isinstance(dataset, IterableDataset):
        return
    cure = f"Read it into a dataset first, Dataset.from_list(list({name}_stream)), or evaluate with one of them."
    if processes > 1:
        raise ValueError(
            f"The {name} dataset is a stream (IterableDataset), and {processes} processes fill their last batches "
            f"with rows of its beginning, which would count twice. {cure}"
        )
    if workers > 1 and dataset.num_shards > 1:
        raise ValueError(
            f"The {name} dataset is a stream (IterableDataset) of {dataset.num_shards} shards, which {workers} "
            f"workers of the data loader read at once, so rows come in another order. {cure}"
        )


def encode_dataset(
    dataset: Any,
    name: str,
    encoder: PromptEncoder,
    *,
    label_column: str,
    require_label: bool = True,
    method: Method,
    labels_within_grid: bool = False,
    weight_by_ratings: bool = False,
    renormalize: bool = False,
    num_proc: int | None = None,
    limits: ModelLimits | None = None,
    preferences: PreferenceWriter | None = None,
) -> Dataset | IterableDataset:
    """Encode every row, check every label, and say how many rows were cut or cannot be expressed.

    A dataset on disk (from the Hub, from files through `load_dataset`, from `load_from_disk`) is encoded once: later
    runs and other processes take the encoded rows from the cache of `datasets`. One in memory (`Dataset.from_list`,
    `from_dict`) has no cache, and is encoded by every run and process; save it and load it from disk to have one. A
    stream is encoded as it is read.

    Args:
        dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a label: a dataset of any format, or
            what [`as_dataset`] makes one of.
        name: what to call the dataset in messages.
        encoder: encodes the prompts.
        label_column: the column of the label; a numeric `completion` stands in for `label`.
        require_label: whether rows without any label are an error, or are encoded without.
        method: decides whether the label is encoded as text too, with the end-of-sequence token behind it, and which
            labels are within reach.
        labels_within_grid: whether a label or a rating outside the grid's range is an error, also where the method
            would take it.
        weight_by_ratings: whether to give each row the number of its raters as its `weight`.
        renormalize: whether predictions are renormalized over the grid, which also decides the labels within reach.
        num_proc: processes to encode with (datasets of known length only).
        limits: of the model, where it is known.
        preferences: writes the prompts, where rows may have `chosen` and `rejected` in place of a label.

    Returns:
        A dataset of `input_ids`, `grid_token_ids`, and, where the encoder has a score prefix, `reasoning_tokens`, each
        a list with an entry for each reasoning of a row (one of 0 tokens where it has none). And, where the rows have
        a label, `label` as float64 and where asked for `target_ids` and `weight`. Where labels may be ratings, `label`
        is their mean, beside `rating_values` and `rating_shares`, which are None for a label that is one number. A
        preference is a row of its chosen prompt without a label, and of the columns in `PREFERENCE_COLUMNS`.

    Raises:
        ValueError: the dataset is empty, holds images, or has rows that cannot be encoded, have no usable label, or
            are more than the model can take; or rows are to weigh by their raters, and have no ratings.
    """
    dataset = as_dataset(dataset, name, label_column)
    row = first_row(dataset, name)
    column = _column_of(dataset, label_column)
    if preferences is None:
        labelled = _check_columns(row, name, column, require_label=require_label)
    else:
        _check_not_refused(row, name)
        labelled = column.is_in(row)
    if method.trains_text and encoder.tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-sequence token to put after the target. Set tokenizer.eos_token."
        )
    if labelled:
        column.class_values(encoder.grid)
    if weight_by_ratings and not column.may_hold_ratings:
        raise ValueError(
            f"`weight_by_ratings=True` weighs rows by their number of raters, and no row of the {name} dataset has "
            "ratings. Leave it off, or give lists of ratings as labels."
        )
    encode = BatchEncoder(
        encoder,
        column,
        labelled=labelled,
        rated=labelled and column.may_hold_ratings,
        weighted=labelled and weight_by_ratings,
        trains_text=method.trains_text,
        labels_within_grid=method.labels_within_grid or labels_within_grid,
        reasoned=encoder.score_prefix is not None,
    )
    remarks = Remarks(
        f"of the {name} dataset", encoder, limited_by_grid=method.limited_by_grid, renormalize=renormalize
    )
    whole = encode if preferences is None else PreferenceEncoder(encode, preferences, label_column)
    return _encoded(dataset, name, list(row), whole, remarks, rated=encode.rated, num_proc=num_proc, limits=limits)


def _encoded(
    dataset: Dataset | IterableDataset,
    name: str,
    columns: list[str],
    encode: BatchEncoder | PreferenceEncoder,
    remarks: Remarks,
    *,
    rated: bool,
    num_proc: int | None,
    limits: ModelLimits | None,
) -> Dataset | IterableDataset:
    """A dataset of these columns, encoded, with what is to be said of its rows."""
    options: dict[str, Any] = {
        "batched": True,
        "with_indices": True,
        "remove_columns": columns,
        "features": encode.features,
    }
    if isinstance(dataset, IterableDataset):
        # The rows of a stream are never seen together, so the first of each kind is said as it is read.
        def encode_and_remark(batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
            encoded = encode(batch, indices)
            if limits is not None:
                check = limits.check_nested if "reasoning_tokens" in encoded else limits.check_columns
                check(encoded["input_ids"], encoded["grid_token_ids"], indices[0])
                if REJECTED_IDS in encoded:
                    limits.check_columns(encoded[REJECTED_IDS], encoded[REJECTED_NUMBERS], indices[0])
            remarks.on_prompts(len(indices), *(sum(encoded[kind]) for kind in REMARKABLE))
            remarks.on_labels([label for label in encoded.get("label", []) if label is not None])
            remarks.on_ratings(encoded.get("rating_values", []))
            return encoded

        return dataset.map(encode_and_remark, **options).remove_columns(list(REMARKABLE))

    encoded = dataset.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset", **options)
    # Counted here and not while encoding, so that it is also said of rows that come from the cache.
    arrays = encoded.with_format("numpy")
    remarks.on_prompts(len(encoded), *(int(arrays[kind][:].sum()) for kind in REMARKABLE))
    remarks.on_labels(_known(arrays["label"][:]) if "label" in encoded.column_names else [])
    remarks.on_ratings(encoded["rating_values"] if rated else [])
    encoded = encoded.remove_columns(list(REMARKABLE))
    if limits is not None:
        limits.check_dataset(encoded)
    return encoded


def _known(labels: np.ndarray) -> Any:
    """The labels without those of preferences, which have none."""
    numbers = np.asarray(labels, dtype=np.float64)
    return numbers[~np.isnan(numbers)]


@cache
def hash_of_source(*more: str) -> str:
    """A hash of the modules that turn rows into tokens, and of those of more packages."""
    packages = ("raft_peft.grid", "raft_peft.data", *more)
    files = [file for package in packages for file in resources.files(package).iterdir()]
    return Hasher.hash(sorted(file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py")))


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes a batch of rows, as `Dataset.map` calls it.

    `datasets` names the cache of the encoded rows by a hash of the rows and of this object's pickle. So it holds
    what decides the encoded rows, and nothing that changes with use or differs from one process to the next.

    Attributes:
        encoder: encodes the prompts.
        column: of the label.
        labelled: whether the rows have a label.
        rated: whether labels may be ratings.
        weighted: whether each row gets the number of its raters as its `weight`.
        trains_text: whether the target is encoded as text too, with the end-of-sequence token behind it.
        labels_within_grid: whether a label outside the grid's range is an error.
        reasoned: whether there is a score prefix, and `input_ids`, `grid_token_ids` and `target_ids` are lists of
            those behind each reasoning of a row.
        source: a hash of the code that encodes, so that rows encoded by other code are not taken from the cache.
    """

    encoder: PromptEncoder
    column: LabelColumn
    labelled: bool
    rated: bool
    weighted: bool
    trains_text: bool
    labels_within_grid: bool
    reasoned: bool
    source: str = field(default_factory=hash_of_source)

    def __call__(self, batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
        """The columns of the encoded batch.

        Args:
            batch: the columns of the rows.
            indices: the numbers of the rows in their dataset, for error messages.

        Raises:
            ValueError: rows that cannot be encoded or have no usable label. The message names them.
        """
        first, grid = indices[0], self.encoder.grid
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        read = read_targets(rows, grid, self.column, first) if self.labelled else []
        labels, ratings = means_of(read), ratings_among(read)
        if not self.labelled:
            self._check_unlabelled(rows, first)
        if self.labels_within_grid:
            check_ratings_within(ratings, grid, first)
            check_within(labels, grid, first)
        trains_text = self.labelled and self.trains_text
        targets = target_texts(written_labels(read, grid), grid, first) if trains_text else None
        of_rows = self._encode_rows(rows, first, targets)
        encoded: dict[str, list] = {
            "input_ids": self._column(of_rows, "input_ids"),
            "grid_token_ids": self._column(of_rows, "grid_token_ids"),
            **{name: [any(getattr(one, name) for one in row) for row in of_rows] for name in REMARKABLE},
        }
        if self.reasoned:
            encoded["reasoning_tokens"] = self._column(of_rows, "reasoning_tokens")
        if self.labelled:
            encoded["label"] = labels
        if self.rated:
            encoded["rating_values"] = [None if one is None else one.values for one in ratings]
            encoded["rating_shares"] = [None if one is None else one.shares for one in ratings]
        if self.weighted:
            encoded["weight"] = weights_of(ratings, first)
        if targets is not None:
            check_target_lengths([row[0] for row in of_rows], targets, first)
            end = self.encoder.tokenizer.eos_token_id
            ids = [[[*one.target_ids, end] for one in row] for row in of_rows]
            encoded["target_ids"] = ids if self.reasoned else [row[0] for row in ids]
        return encoded

    def _encode_rows(
        self, rows: Sequence[Mapping[str, Any]], first: int, targets: Sequence[str] | None
    ) -> list[list[EncodedPrompt]]:
        """The prompts of each row, one behind each of its reasonings; one where it has none."""
        numbers = range(first, first + len(rows))
        if not self.reasoned:
            return [[one] for one in self.encoder.encode(rows, first, targets)]
        spread, places = spread_reasonings(rows, numbers)
        texts = None if targets is None else [targets[place] for place in places]
        encoded = self.encoder.encode(spread, targets=texts, numbers=[numbers[place] for place in places])
        of_rows: list[list[EncodedPrompt]] = [[] for _ in rows]
        for place, one in zip(places, encoded, strict=True):
            of_rows[place].append(one)
        return of_rows

    def _column(self, of_rows: Sequence[Sequence[EncodedPrompt]], name: str) -> list[Any]:
        values = [[getattr(one, name) for one in row] for row in of_rows]
        return values if self.reasoned else [row[0] for row in values]

    def _check_unlabelled(self, rows: Sequence[Mapping[str, Any]], first: int) -> None:
        """Refuse a label where the first row of the dataset has none, instead of dropping it."""
        name = self.column.name
        errors = [
            (row, f"the label is {label!r}, and the first row has none. Fill the column {name!r}, or drop it.")
            for row, label in enumerate(map(self.column.raw, rows), first)
            if label is not None
        ]
        if errors:
            raise rows_error(errors)

    @property
    def features(self) -> Features:
        """The types of the encoded columns.

        Written out, since `datasets` would infer integers from a first batch of whole labels, and cast the rest to
        them.
        """
        ids, numbers = List(Value("int64")), List(List(Value("int32")))
        types: dict[str, Any] = {
            "input_ids": List(ids) if self.reasoned else ids,
            "grid_token_ids": List(numbers) if self.reasoned else numbers,
            **dict.fromkeys(REMARKABLE, Value("bool")),
        }
        if self.reasoned:
            types["reasoning_tokens"] = List(Value("int64"))
        if self.labelled:
            types["label"] = Value("float64")
            if self.rated:
                types |= dict.fromkeys(("rating_values", "rating_shares"), List(Value("float64")))
            if self.weighted:
                types["weight"] = Value("float64")
            if self.trains_text:
                types["target_ids"] = List(ids) if self.reasoned else ids
        return Features(types)


def _column_of(dataset: Dataset | IterableDataset, name: str) -> LabelColumn:
    """The column of the label. Without known types, as in some streams, it may hold ratings."""
    types = features_of(dataset)
    column = LabelColumn.of(name, types.get(name))
    return replace(column, may_hold_ratings=False) if types and name not in types else column


def _check_columns(row: Mapping[str, Any], name: str, column: LabelColumn, *, require_label: bool) -> bool:
    """Whether a dataset with such a row has labels.

    Raises:
        ValueError: the row has columns that cannot be used, or lacks those that are needed.
    """
    _check_not_refused(row, name)
    if "prompt" not in row and "input_ids" not in row:
        raise ValueError(
            f"The {name} dataset has the columns {sorted(row)}, and neither `prompt` nor `input_ids`. Rename the "
            "column of the text to `prompt`: dataset.rename_column('text', 'prompt')."
        )
    if not require_label:
        # A test set may hold an empty column.
        return column.raw(row) is not None
    if not column.is_in(row):
        raise ValueError(
            f"The {name} dataset has the columns {sorted(row)}, and no label in {column.name!r}. Rename the column "
            f"of the target to {column.name!r}, or set `label_column` to its name."
        )
    return True


def _check_not_refused(row: Mapping[str, Any], name: str) -> None:
    """Raise a ValueError for rows that were encoded before, or have images."""
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


def check_target_lengths(prompts: Sequence[EncodedPrompt], targets: Sequence[str], first_row: int = 0) -> None:
    """Raise a ValueError that names the rows whose target's text is longer than what is decoded in prediction."""
    errors = [
        (
            row,
            f"the target {target!r} has {len(prompt.target_ids)} tokens, and {MAX_NEW_TOKENS} are decoded in "
            "prediction. Round or scale the label.",
        )
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True), first_row)
        if len(prompt.target_ids) > MAX_NEW_TOKENS
    ]
    if errors:
        raise rows_error(errors)
