"""Rows with labels, predicted and compared."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from raft_peft.data.labels import LabelColumn, read_labels, with_number
from raft_peft.data.rows import each, features_of
from raft_peft.grid import NumberGrid
from raft_peft.methods.readout import joined
from raft_peft.metrics import Evaluation, grid_metrics, interval_metrics, regression_metrics
from raft_peft.prediction.calibration import Calibration
from raft_peft.prediction.predictor import RegressionPredictor

logger = logging.getLogger(__name__)

# The rows that are read at a time.
_CHUNK = 4096
_USUAL_LEVEL = 0.9


def evaluate_rows(
    predictor: RegressionPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    label_column: str = "label",
    batch_size: int = 64,
    batch_tokens: int = 4096,
    interval: float | None = None,
    show_progress: bool | None = None,
) -> Evaluation:
    """Predict rows and compare with their labels.

    Where the predictor is calibrated, the metrics tell how well its intervals hold: `coverage`, `mean_width` and their
    level, `interval`. On the rows of the calibration itself they hold by construction, which says nothing of others.

    Args:
        predictor: makes the predictions.
        rows: of a `prompt`, or the columns of the model's prompt template, and a label each, as in training: dicts, a
            data frame or a dataset. A label that is text is read as a number.
        label_column: the column of the label.
        batch_size, batch_tokens, show_progress: as in [`RegressionPredictor.predict`].
        interval: the level of the intervals, such as 0.9. None for 0.9 where there is a calibration that can give it,
            and for no intervals where there is none.

    Raises:
        ValueError: no rows; prompts or labels that cannot be used, where the message names the rows; or an `interval`
            that no calibration can give.
    """
    calibration = predictor.calibrated() if interval is not None else _usual_calibration(predictor)
    level = _USUAL_LEVEL if interval is None else interval
    if calibration is not None:
        calibration.half_width(level)
    labels: list[float] = []
    prompts = labelled_prompts(rows, labels, predictor.grid, label_column=label_column)
    readings = list(predictor.read(prompts, batch_size, batch_tokens=batch_tokens, show_progress=show_progress))
    if not labels:
        raise ValueError("There are no rows to evaluate.")
    predictor.remarks().on_labels(labels)
    whole = joined(readings)
    predictions, targets = whole.predictions.numpy(), np.array(labels)
    metrics = regression_metrics(predictions, targets)
    if whole.distribution is not None and not predictor.readout.head.sums_to_one:
        metrics |= grid_metrics(whole.distribution.log_probs.numpy())
    if calibration is not None:
        metrics |= {"interval": level, **interval_metrics(*calibration.intervals(predictions, level), targets)}
    return Evaluation(predictions, targets, metrics)


def _usual_calibration(predictor: RegressionPredictor) -> Calibration | None:
    """The calibration of a predictor, or None, with a warning where there is one that cannot be used."""
    if predictor.calibration is None:
        return None
    try:
        predictor.calibrated().half_width(_USUAL_LEVEL)
    except ValueError as error:
        logger.warning(f"The intervals are left out. {error}")
        return None
    return predictor.calibration


def labelled_prompts(
    rows: Iterable[Mapping[str, Any]],
    labels: list[float],
    grid: NumberGrid,
    *,
    label_column: str,
) -> Iterator[Mapping[str, Any]]:
    """The prompts of rows as they are needed, while their labels are added to a list.

    Raises:
        ValueError: labels that are missing or not numbers. The message names the rows.
    """
    column = LabelColumn.of(label_column, features_of(rows).get(label_column))
    iterator = each(rows)
    while some := [with_number(row, label_column) for row in itertools.islice(iterator, _CHUNK)]:
        labels.extend(read_labels(some, grid, column, len(labels)))
        yield from some
