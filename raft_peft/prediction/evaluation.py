"""Rows with labels, predicted and compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from raft_peft.data.labels import LabelColumn, read_labels, with_number
from raft_peft.data.prompt_template import prompt_writer
from raft_peft.data.rows import each, features_of
from raft_peft.grid import NumberGrid
from raft_peft.methods.readout import joined
from raft_peft.metrics import Evaluation, grid_metrics, regression_metrics
from raft_peft.prediction.predictor import RegressionPredictor

# The rows that are read at a time.
_CHUNK = 4096


def evaluate_rows(
    predictor: RegressionPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    label_column: str = "label",
    prompt_template: str | None = None,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    show_progress: bool | None = None,
) -> Evaluation:
    """Predict rows and compare with their labels.

    Args:
        predictor: makes the predictions.
        rows: of a `prompt` and a label each, as in training: dicts, a data frame or a dataset. A label that is text
            is read as a number.
        label_column: the column of the label.
        prompt_template: the prompt, from the columns of a row in braces; by default its `prompt`.
        batch_size, batch_tokens, show_progress: as in [`RegressionPredictor.predict`].

    Raises:
        ValueError: no rows, or prompts or labels that cannot be used. The message names the rows.
    """
    labels: list[float] = []
    prompts = labelled_prompts(
        rows, labels, predictor.grid, label_column=label_column, prompt_template=prompt_template
    )
    readings = list(predictor.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress))
    if not labels:
        raise ValueError("There are no rows to evaluate.")
    predictor.remarks().on_labels(labels)
    whole = joined(readings)
    predictions, targets = whole.predictions.numpy(), np.array(labels)
    metrics = regression_metrics(predictions, targets)
    if whole.distribution is not None and not predictor.readout.head.sums_to_one:
        metrics |= grid_metrics(whole.distribution.log_probs.numpy())
    return Evaluation(predictions, targets, metrics)


def labelled_prompts(
    rows: Iterable[Mapping[str, Any]],
    labels: list[float],
    grid: NumberGrid,
    *,
    label_column: str,
    prompt_template: str | None,
) -> Iterator[Mapping[str, Any]]:
    """The prompts of rows as they are needed, while their labels are added to a list.

    Raises:
        ValueError: labels that are missing or not numbers. The message names the rows.
    """
    write_prompt = prompt_writer(prompt_template)
    column = LabelColumn.of(label_column, features_of(rows).get(label_column))
    iterator = each(rows)
    while some := [with_number(row, label_column) for row in itertools.islice(iterator, _CHUNK)]:
        labels.extend(read_labels(some, grid, column, len(labels)))
        yield from map(write_prompt, some)
