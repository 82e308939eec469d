"""From held-out rows to a calibration."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raft_peft.data.labels import LabelColumn, means_of, range_of_grid, ratings_among, read_targets, with_number
from raft_peft.data.ratings import Ratings, rating_tensors
from raft_peft.data.rows import each
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.losses.label_shares import mean_two_hot
from raft_peft.messages import warn
from raft_peft.methods import METHODS, MethodSettings
from raft_peft.methods.readout import Reading, joined
from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL, Calibration
from raft_peft.prediction.calibrating.groups import check_count, grouped
from raft_peft.prediction.calibrating.intervals.conformal import spreads, tails
from raft_peft.prediction.calibrating.intervals.kinds import INTERVALS
from raft_peft.prediction.calibrating.label_map import check_kind, cross_fitted_errors, fitted
from raft_peft.prediction.calibrating.temperature import fitted_temperature

if TYPE_CHECKING:
    from raft_peft.prediction.predictor import RegressionPredictor
    from raft_peft.prediction.reasoning.writer import ReasoningWriter

logger = logging.getLogger(__name__)

_OF_DISTRIBUTIONS = ("adaptive", "quantiles")


def calibrate(
    predictor: RegressionPredictor,
    prompts: Iterable[Any],
    labels: Iterable[Any],
    *,
    intervals: str | None,
    groups: str | Iterable[Any] | None,
    label_map: str | None,
    round_to_grid: bool,
    writer: ReasoningWriter | None = None,
    **reading: Any,
) -> Calibration:
    """The calibration of a predictor, see `RegressionPredictor.calibrate`.

    Args:
        predictor: makes the predictions.
        prompts, labels, intervals, groups, label_map, round_to_grid: as there.
        writer: writes the reasonings before the numbers; None where nothing is written.
        reading: `batch_size`, `batch_tokens` and `show_progress`.
    """
    method = predictor.settings.method
    check_kinds(intervals, label_map, numbers=len(predictor.grid))
    names = None
    if groups is not None:
        prompts, names = grouped(prompts, groups)
    readings: list[Reading] = []
    for found in predictor.read(prompts, writer=writer, **reading):
        if found.distribution is None and intervals in _OF_DISTRIBUTIONS:
            raise ValueError(
                f"`intervals={intervals!r}` follow the distribution, and method {method!r} gives one number a prompt. "
                "Use `intervals='constant'`, or a method with a distribution, such as raft."
            )
        readings.append(found)
    whole = joined(readings) if readings else Reading(torch.empty(0), None, None)
    column = LabelColumn.of("label", getattr(labels, "features", None))
    rows = [with_number({"label": label}, "label") for label in each(labels)]
    targets = read_targets(rows, predictor.grid, column)
    numbers = means_of(targets)
    predictor.remarks().on_labels(numbers)
    return calibration_of(
        whole.predictions.numpy(),
        np.asarray(numbers, dtype=np.float64),
        whole.distribution,
        predictor.grid.values,
        predictor._calibrated_settings(None if writer is None else writer.reading_options()),
        ratings=ratings_among(targets),
        kind=intervals or usual_kind(predictor.settings),
        groups=names,
        group_column=groups if isinstance(groups, str) else None,
        label_map=label_map,
        round_to_grid=round_to_grid,
    )


def check_kinds(intervals: str | None, label_map: str | None, *, numbers: int) -> None:
    """Refuse kinds of intervals and maps that there are not, or that do not go together, before a row is predicted.

    Args:
        intervals: constant, adaptive, quantiles, or None for the usual kind.
        label_map: affine, isotonic, or None.
        numbers: how many the grid holds.
    """
    check_kind(label_map)
    if intervals is not None and intervals not in INTERVALS:
        raise ValueError(f"`intervals={intervals!r}` does not exist. Use one of {', '.join(INTERVALS)}.")
    if intervals in _OF_DISTRIBUTIONS and numbers == 1:
        raise ValueError(
            f"`intervals={intervals!r}` follow the distribution over the grid, which has only one number. Use "
            "`intervals='constant'`, or give the grid a second number."
        )
    if intervals == "quantiles" and label_map is not None:
        raise ValueError(
            "A map moves the predictions and not the distribution, whose quantiles `intervals='quantiles'` are. Use "
            "`intervals='adaptive'`, or leave out `label_map`."
        )


def usual_kind(settings: MethodSettings) -> str:
    """The kind of intervals where none is asked for: adaptive after training by a proper loss, else constant.

    RAFT trains the mean alone, and of an untrained model nothing is known. The choice does not look at the held-out
    rows, since the narrower of two intervals covers less often than either.
    """
    trained = METHODS[settings.method].renormalizes or settings.distribution_loss is not None
    return "adaptive" if trained else "constant"


def calibration_of(
    predictions: np.ndarray,
    labels: np.ndarray,
    distribution: GridDistribution | None,
    grid_values: Sequence[float],
    settings: Mapping[str, Any],
    *,
    ratings: Sequence[Ratings | None] | None = None,
    kind: str = "constant",
    groups: Sequence[str] | None = None,
    group_column: str | None = None,
    label_map: str | None = None,
    round_to_grid: bool = False,
) -> Calibration:
    """The calibration that held-out rows give.

    Args:
        predictions, labels: of shape (rows,).
        distribution: of the same rows; None where the method has none.
        grid_values: the numbers of the grid.
        settings: how numbers are read off the model.
        ratings: of each row, whose mean its label is; None where labels are numbers. The temperature is fitted to
            each rating, while intervals hold their mean.
        kind: of the intervals: constant, adaptive or quantiles; constant where there is no distribution to follow.
        groups: the name of each row's group.
        group_column: the column that it stands in.
        label_map: affine or isotonic, the map from predictions to labels to learn.
        round_to_grid: whether the ends of intervals are numbers of the grid, as the labels are.

    Raises:
        ValueError: there are no rows, or predictions that are not numbers; not as many groups as rows; labels between
            the numbers of the grid with `round_to_grid`; or too few rows for the map.
    """
    if len(labels) == 0 or predictions.shape != labels.shape:
        raise ValueError(
            f"Calibration needs a label for each prompt, and at least one; got {len(predictions)} predictions and "
            f"{len(labels)} labels."
        )
    predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    errors = np.abs(predictions - labels)
    if not np.isfinite(errors).all():
        row = int(np.flatnonzero(~np.isfinite(errors))[0])
        raise ValueError(
            f"The prediction of row {row} is {predictions[row]} and its label {labels[row]}. Both must be numbers."
        )
    if groups is not None:
        check_count(list(groups), len(labels))
    if round_to_grid:
        _check_on_grid(labels, grid_values)
    low, high = range_of_grid(NumberGrid(grid_values))
    low, high = min(low, float(labels.min())), max(high, float(labels.max()))
    learned, mapped_errors = None, None
    if label_map is not None:
        learned = fitted(label_map, predictions, labels)
        mapped_errors = cross_fitted_errors(label_map, predictions, labels, lambda mapped: np.clip(mapped, low, high))
    # Given that the answer is on a grid of one number, it is sure at any temperature, and holds no other label.
    if distribution is not None and len(distribution.values) == 1:
        distribution = None
    of_labels = None if distribution is None else _tails(distribution, labels)
    order = np.argsort(errors, kind="stable")
    found = Calibration(
        errors=tuple(errors[order].tolist()),
        low=low,
        high=high,
        temperature=None if distribution is None else _temperature(distribution, labels, ratings),
        settings=dict(settings),
        spreads=None if distribution is None else tuple(spreads(distribution)[order].tolist()),
        tails=None if of_labels is None else tuple(of_labels[order].tolist()),
        kind="constant" if distribution is None else kind,
        label_map=learned,
        mapped_errors=None if mapped_errors is None else tuple(mapped_errors[order].tolist()),
        groups=None if groups is None else tuple(groups[row] for row in order),
        group_column=group_column,
        grid=tuple(map(float, grid_values)) if round_to_grid else None,
    )
    if groups is not None:
        _warn_of_small_groups(found)
    return replace(found, mean_widths=_mean_widths(found, predictions, distribution, groups))


def _temperature(
    distribution: GridDistribution, labels: np.ndarray, ratings: Sequence[Ratings | None] | None
) -> float:
    of_rows = [None] * len(labels) if ratings is None else ratings
    tensors = rating_tensors(labels.tolist(), of_rows)
    return fitted_temperature(distribution, mean_two_hot(*tensors, distribution.values.cpu()))


def _tails(distribution: GridDistribution, labels: np.ndarray) -> np.ndarray:
    """As `conformal.tails`.

    Raises:
        ValueError: a row has no probability on the grid.
    """
    found = tails(distribution, labels)
    if np.isnan(found).any():
        row = int(np.flatnonzero(np.isnan(found))[0])
        raise ValueError(
            f"No number of the grid has any probability in row {row}, so there is no distribution to calibrate. Let "
            "the prompt ask for the number more plainly."
        )
    return found


def _check_on_grid(labels: np.ndarray, grid_values: Sequence[float]) -> None:
    between = ~np.isin(labels, np.asarray(grid_values, dtype=np.float64))
    if between.any():
        row = int(np.flatnonzero(between)[0])
        raise ValueError(
            f"{int(between.sum())} of the {len(labels)} labels are not numbers of the grid, as {labels[row]:.6g} of "
            f"row {row}. With `round_to_grid=True` intervals would cover such a label too seldom. Leave it out."
        )


def _warn_of_small_groups(calibration: Calibration) -> None:
    """Say which groups have too few rows for the usual level, before an interval of it is asked for."""
    for name, rows in Counter(calibration.groups).items():
        if (rows + 1) * (1 - USUAL_LEVEL) < 1 - 1e-9:
            warn(
                logger,
                f"The group {name!r} has {rows} held-out row{'s' * (rows != 1)}, enough for intervals of level "
                f"{rows / (rows + 1):.3g} at most. Calibrate on more of them, or join it with another group.",
            )


def _mean_widths(
    calibration: Calibration,
    predictions: np.ndarray,
    distribution: GridDistribution | None,
    groups: Sequence[str] | None,
) -> dict[str, float]:
    """The mean width of intervals of the usual level on the held-out rows, of each kind that there is.

    With a map they are those around the mapped predictions.
    """
    found = {}
    mapped = calibration.label_map is not None
    kinds = [kind for kind in INTERVALS if calibration.tails is not None or kind == "constant"]
    if mapped:
        # A map moves the predictions and not the distribution.
        predictions, kinds = calibration.mapped(predictions), [kind for kind in kinds if kind != "quantiles"]
    for kind in kinds:
        of_kind = replace(calibration, kind=kind)
        try:
            low, high = of_kind.intervals(predictions, USUAL_LEVEL, distribution, groups, mapped=mapped)
        except ValueError:
            # So few rows have no intervals of this level.
            return {}
        found[kind] = float(np.mean(high - low))
    return found
