"""Rows with labels, predicted and compared."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from raft_peft.data.labels import LabelColumn, means_of, ratings_among, read_targets, with_number
from raft_peft.data.ratings import Ratings, rating_tensors
from raft_peft.data.rows import each, features_of
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.losses.label_shares import mean_beyond_grid, mean_two_hot
from raft_peft.methods.readout import joined
from raft_peft.metrics import (
    Evaluation,
    RowDistributions,
    grid_metrics,
    interval_metrics,
    qwk,
    regression_metrics,
)
from raft_peft.prediction.calibrating.applied import AppliedCalibration
from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL
from raft_peft.prediction.number_predictor import NumberPredictor
from raft_peft.prediction.reasoning.writer import ReasoningOptions, ReasoningWriter

logger = logging.getLogger(__name__)

# The rows that are read at a time.
_CHUNK = 4096


def evaluate_rows(
    predictor: NumberPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    label_column: str = "label",
    batch_size: int = 64,
    batch_tokens: int = 4096,
    interval: float | None = None,
    calibrated: bool = False,
    show_progress: bool | None = None,
    **reasoning: Unpack[ReasoningOptions],
) -> Evaluation:
    """Predict rows and compare with their labels.

    Where the predictor is calibrated, the metrics tell how well its intervals hold: `coverage`, `mean_width` and their
    level, `interval`. On the rows of the calibration itself they hold by construction, which says nothing of others.

    Args:
        predictor: makes the predictions: a [`RegressionPredictor`], or one of a server.
        rows: of a `prompt`, or the columns of the model's prompt template, and a label each, as in training: dicts, a
            data frame or a dataset. A label that is text is read as a number.
        label_column: the column of the label.
        batch_size, batch_tokens, show_progress: as in [`RegressionPredictor.predict`].
        interval: the level of the intervals, such as 0.9. None for 0.9 where there is a calibration that can give it,
            and for no intervals where there is none. Where it was made with groups, the coverage of each is told too.
        calibrated: map the predictions to labels, after `calibrate(..., label_map=...)`, and evaluate these.
        reasoning: `num_reasonings`, `temperature`, `max_reasoning_tokens` and `seed`, as in
            [`RegressionPredictor.predict`]: the model writes reasonings before its numbers. By default the numbers are
            read behind the `reasoning` of the rows, if any.

    Raises:
        ValueError: no rows; prompts or labels that cannot be used, where the message names the rows; or an `interval`
            that no calibration can give.
    """
    writer = predictor.writer(**reasoning, batch_size=batch_size)
    applied = AppliedCalibration.of_predictor(predictor, interval=interval, mapped=calibrated, writer=writer)
    read: list[float | Ratings] = []
    groups: list[Any] = []
    prompts: Iterable[Any] = labelled_prompts(rows, read, predictor.grid, label_column=label_column)
    prompts = _noting_groups(prompts, predictor, groups) if interval is None else applied.prompts(prompts)
    options: Any = {"batch_tokens": batch_tokens, "show_progress": show_progress, "writer": writer}
    readings = [one.of_rows for one in predictor.read_reasonings(prompts, batch_size, **options)]
    if not read:
        raise ValueError("There are no rows to evaluate.")
    labels, ratings = means_of(read), ratings_among(read)
    remarks = predictor.remarks()
    remarks.on_labels(labels)
    remarks.on_ratings(None if one is None else one.values for one in ratings)
    whole = joined(readings)
    targets = np.array(labels)
    if interval is None:
        applied = _with_usual_intervals(predictor, groups, mapped=calibrated, writer=writer) or applied
    predictions, ends = applied.of(whole.predictions.numpy(), whole.distribution)
    metrics = regression_metrics(predictions, targets)
    if len(predictor.grid) > 1:
        metrics["qwk"] = qwk(predictions, targets, predictor.grid.values)
    distributions = _distributions(whole.distribution, labels, ratings)
    if distributions is not None:
        metrics |= distributions.metrics()
    if whole.distribution is not None and not predictor.sums_to_one:
        metrics |= grid_metrics(whole.distribution.log_probs.numpy())
    if ends is not None:
        metrics |= {"interval": USUAL_LEVEL if interval is None else interval, **interval_metrics(*ends, targets)}
        metrics |= _coverage_of_groups(ends, targets, applied.names or [])
    widths = None if ends is None else ends[1] - ends[0]
    return Evaluation(predictions, targets, metrics, distributions=distributions, widths=widths)


def _distributions(
    distribution: GridDistribution | None, labels: Sequence[float], ratings: Sequence[Ratings | None]
) -> RowDistributions | None:
    """The distributions of rows beside their labels; None where there are none, or the grid is one number."""
    if distribution is None or len(distribution.values) < 2:
        return None
    values = distribution.values
    tensors = rating_tensors(labels, ratings)
    return RowDistributions(
        values.numpy(),
        distribution.log_probs.numpy(),
        mean_two_hot(*tensors, values).numpy(),
        np.array([one is not None for one in ratings]),
        mean_beyond_grid(*tensors, values).numpy(),
    )


def _noting_groups(
    prompts: Iterable[Mapping[str, Any]], predictor: NumberPredictor, groups: list[Any]
) -> Iterator[Mapping[str, Any]]:
    """The prompts, while what their rows hold as group is added to a list, where a calibration has a column of it."""
    column = None if predictor.calibration is None else predictor.calibration.group_column
    for row in prompts:
        if column is not None:
            groups.append(row.get(column))
        yield row


def _with_usual_intervals(
    predictor: NumberPredictor, groups: list[Any], *, mapped: bool, writer: ReasoningWriter | None
) -> AppliedCalibration | None:
    """The calibration at the usual level, or None, with a warning where there is one that cannot be used."""
    if predictor.calibration is None:
        return None
    try:
        found = AppliedCalibration.of_predictor(
            predictor, interval=USUAL_LEVEL, mapped=mapped, groups=groups or None, writer=writer
        )
        found.prompts(groups)
    except ValueError as error:
        logger.warning(f"The intervals are left out. {error}")
        return None
    return found


def _coverage_of_groups(
    ends: tuple[np.ndarray, np.ndarray], targets: np.ndarray, groups: list[str]
) -> dict[str, float]:
    """The share of the labels of each group that lie within their intervals, as `coverage_NAME`."""
    inside, names = (ends[0] <= targets) & (targets <= ends[1]), np.array(groups, dtype=object)
    return {f"coverage_{name}": float(inside[names == name].mean()) for name in dict.fromkeys(groups)}


def labelled_prompts(
    rows: Iterable[Mapping[str, Any]], labels: list[float | Ratings], grid: NumberGrid, *, label_column: str
) -> Iterator[Mapping[str, Any]]:
    """The prompts of rows as they are needed, while their labels are added to a list.

    Args:
        rows: of prompts and labels.
        labels: gets the label of each row, a number or ratings.
        grid: the numbers that the model may answer with.
        label_column: the column of the label.

    Raises:
        ValueError: labels that are missing or not numbers. The message names the rows.
    """
    column = LabelColumn.of(label_column, features_of(rows).get(label_column))
    iterator = each(rows)
    while some := [with_number(row, label_column) for row in itertools.islice(iterator, _CHUNK)]:
        labels.extend(read_targets(some, grid, column, len(labels)))
        yield from some
