"""A calibration at work on predictions: mapped to labels, and with intervals around them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from raft_peft.distribution import GridDistribution
from raft_peft.prediction.calibrating.calibration import WITH_MAP, Calibration
from raft_peft.prediction.calibrating.groups import grouped

if TYPE_CHECKING:
    from raft_peft.prediction.number_predictor import NumberPredictor
    from raft_peft.prediction.reasoning.writer import ReasoningWriter

Ends = tuple[np.ndarray, np.ndarray]


class AppliedCalibration:
    """What a calibration makes of predictions, as they are made.

    Args:
        calibration: of the predictor; None where nothing is asked of it.
        interval: the share of labels that intervals are to cover; None for none.
        mapped: whether predictions are mapped to labels.
        groups: the column of the rows that names the group of each, or one name a row; None for the column that the
            calibration was made with.

    Raises:
        ValueError: what cannot be given: an interval of this level, a mapped prediction, or groups.
    """

    def __init__(
        self,
        calibration: Calibration | None,
        *,
        interval: float | None,
        mapped: bool = False,
        groups: str | Iterable[Any] | None = None,
    ):
        self._calibration, self._interval, self._mapped = calibration, interval, mapped
        self._groups, self._at = groups, 0
        self.names: list[str] | None = None
        if groups is not None and (interval is None or calibration is None):
            raise ValueError("`groups` is only for intervals. Set `interval`, such as 0.9, or leave them out.")
        if calibration is None:
            return
        if mapped:
            calibration.mapped(np.empty(0))
        if interval is None:
            return
        if calibration.groups is None and groups is not None:
            raise ValueError(
                "The model was calibrated on all rows as one, so `groups` has no effect. Leave it out, or calibrate "
                "with `groups`."
            )
        calibration.check(interval)
        if calibration.groups is not None and groups is None:
            self._groups = calibration.group_column
            if self._groups is None:
                raise ValueError(
                    f"{calibration.covers_groups()}, and the groups of these rows are not known. Pass `groups`, "
                    "one name for each prompt or the column that holds it."
                )

    @classmethod
    def of_predictor(
        cls,
        predictor: NumberPredictor,
        *,
        interval: float | None,
        mapped: bool,
        writer: ReasoningWriter | None = None,
        **options: Any,
    ) -> AppliedCalibration:
        """That of a predictor, where an interval or mapped predictions are asked for.

        Args:
            predictor: makes the predictions.
            interval, mapped, options: of this class.
            writer: writes the reasonings before the numbers; None where nothing is written.

        Raises:
            ValueError: there is no calibration for what is asked for.
        """
        known = predictor.calibration
        if mapped and (known is None or known.label_map is None):
            raise ValueError(f"No map from predictions to labels was learned. Calibrate with one: {WITH_MAP}.")
        found = predictor.calibrated(writer) if mapped or interval is not None else None
        return cls(found, interval=interval, mapped=mapped, **options)

    @property
    def needs_distribution(self) -> bool:
        """Whether intervals follow the distribution."""
        found = self._calibration
        return found is not None and self._interval is not None and found.follows_distribution

    @property
    def rounds_to_grid(self) -> bool:
        """Whether the ends of intervals are numbers of the grid."""
        return self._calibration is not None and self._calibration.grid is not None

    def prompts(self, prompts: Iterable[Any], first_row: int = 0) -> Iterable[Any]:
        """The prompts, whose groups are seen as they are read.

        Args:
            prompts: as a predictor takes them.
            first_row: the number of the first of them, for messages.

        Raises:
            ValueError: a row has no group, or one that has no intervals.
        """
        if self._groups is None:
            return prompts
        prompts, self.names = grouped(prompts, self._groups, self._check, first_row)
        return prompts

    def _check(self, name: str) -> None:
        assert self._calibration is not None and self._interval is not None
        self._calibration.check(self._interval, name)

    def of(self, predictions: np.ndarray, distribution: GridDistribution | None) -> tuple[np.ndarray, Ends | None]:
        """The next predictions in the order of the prompts, mapped where that was asked for, and their intervals.

        Args:
            predictions: of shape (rows,).
            distribution: of the same rows, where `needs_distribution`.

        Raises:
            ValueError: an interval cannot be given.
        """
        found = self._calibration
        if found is None:
            return predictions, None
        if self._mapped:
            predictions = found.mapped(predictions)
        if self._interval is None:
            return predictions, None
        names = None
        if self.names is not None:
            names = self.names[self._at : self._at + len(predictions)]
            self._at += len(predictions)
        return predictions, found.intervals(predictions, self._interval, distribution, names, mapped=self._mapped)
