"""What the baselines share that transformers' own `Trainer` trains: their rows, their order and their metrics."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from datasets import Dataset, Features, List, Value
from torch.utils.data import SequentialSampler
from transformers import EvalPrediction, Trainer, TrainingArguments

from raft_peft.data.prompts import rows_error
from raft_peft.data.ratings import as_one_number
from raft_peft.metrics import regression_metrics

logger = logging.getLogger(__name__)

_ERRORS = ("rmse", "mae", "loss")


class BaselineTrainer(Trainer):
    """`Trainer` that evaluates rows in their order, also where training groups them by length."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def metrics_of(evaluated: EvalPrediction) -> dict[str, float]:
    """The metrics of predictions of shape (rows,)."""
    return regression_metrics(evaluated.predictions, evaluated.label_ids)


def with_direction(args: TrainingArguments) -> TrainingArguments:
    """The settings, with the least error as the best: `TrainingArguments` takes all but a loss for a score."""
    args = copy.copy(args)
    if args.metric_for_best_model is not None:
        args.greater_is_better = not args.metric_for_best_model.endswith(_ERRORS)
    return args


def tokenize_split(
    dataset: Dataset,
    name: str,
    *,
    label_column: str,
    read: Callable[[Mapping[str, Any]], Any],
    encode: Callable[[list[Any]], Mapping[str, list]],
    columns: Sequence[str],
    limit: int | None,
) -> Dataset:
    """Rows of tokens, and `label` as float64; of ratings it is their mean.

    Args:
        dataset: rows of `prompt` and a label.
        name: of the split, for messages.
        label_column: name of the column that holds the label.
        read: a row's prompt as `encode` takes it; it raises a ValueError for one that cannot be used.
        encode: the columns of tokens of many prompts, `input_ids` among them.
        columns: the names of these columns.
        limit: the most tokens that `encode` leaves of a prompt; None where there is none.

    Raises:
        ValueError: a column is missing, the split is empty, or rows cannot be used.
    """
    lacking = [column for column in ("prompt", label_column) if column not in dataset.column_names]
    if lacking or len(dataset) == 0:
        raise ValueError(
            f"The {name} dataset has {len(dataset)} rows of the columns {dataset.column_names}. It needs at least one "
            f"row, with `prompt` and the label in {label_column!r}: rename the columns, or set label_column."
        )

    def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        prompts, errors = [], []
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            row = dict(zip(batch, values, strict=True))
            try:
                prompts.append(read(row))
                _check_label(row[label_column], label_column)
            except ValueError as error:
                errors.append((index, str(error)))
        if errors:
            raise rows_error(errors)
        encoded = encode(prompts)
        empty = [index for index, ids in zip(indices, encoded["input_ids"], strict=True) if not ids]
        if empty:
            raise rows_error([(index, "the prompt has no tokens. Drop the row.") for index in empty])
        return {**encoded, "label": [float(as_one_number(label)) for label in batch[label_column]]}

    # Written out, since datasets would infer integers from a first batch of whole labels and cast the rest to them.
    features = {**{column: List(Value("int64")) for column in columns}, "label": Value("float64")}
    tokenized = dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        desc=f"Tokenizing {name} dataset",
    )
    full = 0 if limit is None else sum(len(ids) >= limit for ids in tokenized["input_ids"])
    if full:
        logger.warning(
            "%d of the %d prompts of the %s dataset fill the %d tokens that the model gets; longer ones lost their "
            "beginning.",
            full,
            len(tokenized),
            name,
            limit,
        )
    return tokenized


def _check_label(label: Any, label_column: str) -> None:
    """Raise a ValueError where a label cannot be trained on."""
    label = as_one_number(label)
    if not isinstance(label, Real):
        raise ValueError(
            f"the label {label!r} is not a number. Fill the column {label_column!r} with floats, or drop the row."
        )
    if not math.isfinite(label):
        raise ValueError(f"the label is {label}. Drop the row or repair its label.")
