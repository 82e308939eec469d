"""Datasets of typed questions: from the user's rows to encoded ones, in which each column is a list over questions."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from raft_peft.data.dataset import hash_of_source
from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.encoder import EncodedQuestion, QuestionEncoder
from raft_peft.data.questions.row import QUESTIONS, ROW_COLUMNS, QuestionRow
from raft_peft.data.rows import each, features_of, unformatted
from raft_peft.messages import warn

logger = logging.getLogger(__name__)

TARGET_COLUMNS = ("label", "rating_values", "rating_shares")
# What is said of the rows, and not trained on.
_REMARKS = ("was_cut", "without_target")


def as_question_rows(source: Any, first_row: int = 0, *, from_table: bool | None = None) -> Iterator[QuestionRow]:
    """The rows of a source, as they are read.

    Args:
        source: rows as [`QuestionRow.of`] takes them: a list, a data frame, an Arrow table, or a dataset.
        first_row: the number of the first of them, for messages.
        from_table: whether the rows come from a table, as those that are read from Parquet; by default where the
            source is one.

    Raises:
        ValueError: a row is no such row, or there are no rows in an order. The message names row and question.
    """
    from_table = is_question_table(source) if from_table is None else from_table
    for number, row in enumerate(each(source), first_row):
        if isinstance(row, QuestionRow):
            yield row
            continue
        try:
            yield QuestionRow.of(row, from_table=from_table)
        except ValueError as error:
            raise rows_error([(number, str(error))]) from error


def as_question_dataset(source: Any, name: str) -> Dataset | IterableDataset:
    """Rows as a dataset that an encoder can map.

    A dataset stays what it is, so that its encoded rows are cached. Other rows are written as JSON text, since a table
    would give the questions and the keys of all rows to each.

    Args:
        source: as for `as_question_rows`.
        name: what to call it in messages.

    Raises:
        ValueError: as `as_question_rows`; or there is no row.
    """
    if isinstance(source, Dataset | IterableDataset):
        dataset = unformatted(source)
        if next(iter(dataset), None) is not None:
            return dataset
        rows = []
    else:
        try:
            rows = [row.as_json() for row in as_question_rows(source)]
        except ValueError as error:
            raise ValueError(f"The {name} dataset cannot be read. {error}") from error
    if not rows:
        raise ValueError(f"The {name} dataset is empty. It needs at least one row of `state` and `questions`.")
    return Dataset.from_list(rows)


def encode_question_dataset(
    source: Any,
    name: str,
    encoder: QuestionEncoder,
    *,
    require_targets: bool = True,
    num_proc: int | None = None,
    limits: ModelLimits | None = None,
) -> Dataset | IterableDataset:
    """Encode every question of every row, and check every target.

    Args:
        source: as for `as_question_rows`.
        name: what to call it in messages.
        encoder: encodes the questions.
        require_targets: whether only questions with a target are encoded, and a row without any is an error, as is a
            question that never has one. Otherwise all are, with targets where all have one.
        num_proc: processes to encode with (datasets of known length only).
        limits: of the model, where it is known.

    Returns:
        A dataset of the columns of [`EncodedQuestion.columns`], each a list over the questions of a row.

    Raises:
        ValueError: rows that cannot be read or encoded, or have no target where they need one. The message names
            rows, questions and cure.
    """
    dataset = as_question_dataset(source, name)
    columns = list(next(iter(dataset)))
    encode = QuestionBatchEncoder(encoder, require_targets, is_question_table(dataset))
    options: dict[str, Any] = {
        "batched": True,
        "with_indices": True,
        "remove_columns": columns,
        "features": encode.features,
    }
    if isinstance(dataset, IterableDataset):
        stream = dataset.map(encode, **options)
        return stream.remove_columns([*_REMARKS, *(() if require_targets else TARGET_COLUMNS)])
    # Columns that are not read would make the name of the cache another.
    dataset = dataset.select_columns([column for column in ROW_COLUMNS if column in columns])
    options["remove_columns"] = dataset.column_names
    encoded = dataset.map(encode, num_proc=num_proc, desc=f"Tokenizing {name} dataset", **options)
    missing = set(itertools.chain.from_iterable(encoded["without_target"]))
    if require_targets and (never := sorted(missing - set(itertools.chain.from_iterable(encoded["id"])))):
        raise ValueError(
            f"No row of the {name} dataset has a target for the question {never[0]!r}, so it would not be trained or "
            "evaluated. Fill its `targets`, or do not ask it there."
        )
    cut = sum(map(any, encoded["was_cut"]))
    if cut:
        warn(
            logger,
            f"{cut} of {len(encoded)} states of the {name} dataset are longer than `max_length="
            f"{encoder.max_length}` leaves room for, and lose their end. Set `max_length` to more to keep it.",
        )
    encoded = encoded.remove_columns([*_REMARKS, *(TARGET_COLUMNS if missing and not require_targets else ())])
    if limits is not None:
        limits.check_dataset(encoded)
    return encoded


@dataclass(frozen=True)
class QuestionBatchEncoder:
    """Encodes a batch of rows, as `Dataset.map` calls it.

    `datasets` names the cache of the encoded rows by a hash of the rows and of this object's pickle.

    Attributes:
        encoder: encodes the questions.
        require_targets: whether only questions with a target are encoded.
        from_table: whether questions are objects of a table, and not JSON text.
        source: a hash of the code that encodes, so that rows encoded by other code are not taken from the cache.
    """

    encoder: QuestionEncoder
    require_targets: bool
    from_table: bool
    source: str = field(default_factory=partial(hash_of_source, "raft_peft.data.questions"))

    def __call__(self, batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
        """The columns of the encoded batch.

        Args:
            batch: the columns of the rows.
            indices: the numbers of the rows in their dataset, for error messages.

        Raises:
            ValueError: rows that cannot be read or encoded. The message names them.
        """
        rows: list[QuestionRow] = []
        errors: list[tuple[int, str]] = []
        for number, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            try:
                rows.append(QuestionRow.of(dict(zip(batch, values, strict=True)), from_table=self.from_table))
            except ValueError as error:
                errors.append((number, str(error)))
        if errors:
            raise rows_error(errors)
        encoded = self.encoder.encode(rows, indices[0], require_targets=self.require_targets)
        columns: dict[str, list] = {name: [] for name in self.features}
        for row, questions in zip(rows, encoded, strict=True):
            own = [_with_target(one) for one in questions]
            for name in own[0]:
                columns[name].append([one[name] for one in own])
            columns["was_cut"].append([one.was_cut for one in questions])
            columns["without_target"].append([one.id for one in row.questions if one.id not in row.targets])
        return columns

    @property
    def features(self) -> Features:
        """The types of the columns. They are given, and not found, since a batch may hold none of a kind."""
        of_each = {
            "id": Value("string"),
            "type": Value("string"),
            "input_ids": List(Value("int64")),
            "grid_token_ids": List(List(Value("int32"))),
            "option_of_text": List(Value("int64")),
            "option_values": List(Value("float64")),
            "label": Value("float64"),
            "rating_values": List(Value("float64")),
            "rating_shares": List(Value("float64")),
            "was_cut": Value("bool"),
            "without_target": Value("string"),
        }
        return Features({name: List(kind) for name, kind in of_each.items()})


def _with_target(question: EncodedQuestion) -> dict[str, Any]:
    """The columns of a question; without a target its label is NaN."""
    return {"label": math.nan, "rating_values": [], "rating_shares": [], **question.columns()}


def is_question_table(source: Any) -> bool:
    """Whether the questions of a source are objects of a table, in which all rows have the keys of each."""
    if isinstance(source, Dataset | IterableDataset):
        kind = features_of(source).get(QUESTIONS)
        return not isinstance(kind, Value)
    return hasattr(source, "to_pylist") or hasattr(source, "iter_rows")
