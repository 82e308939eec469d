"""Maps from predictions to labels, for a model that is not trained: learned from a few dozen rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raft_peft.messages import warn

logger = logging.getLogger(__name__)

# An affine map takes two rows, and a third has an error.
_LEAST_ROWS = 3
_FOLDS = 10


@dataclass(frozen=True)
class AffineMap:
    """slope x prediction + intercept, with a slope of 0 or more."""

    slope: float
    intercept: float
    kind: str = "affine"

    def __call__(self, predictions: np.ndarray) -> np.ndarray:
        """The labels that predictions stand for, of the same shape, float64."""
        return self.slope * np.asarray(predictions, dtype=np.float64) + self.intercept

    @classmethod
    def fitted(cls, predictions: np.ndarray, labels: np.ndarray) -> AffineMap:
        """The least squares of the labels among all that do not fall; where none rises, the mean label."""
        centred = predictions - predictions.mean()
        spread = float((centred**2).sum())
        slope = float((centred * labels).sum()) / spread if np.ptp(predictions) > 0 else 0.0
        # A falling map would turn the order of all rows around.
        slope = max(slope, 0.0)
        return cls(slope, float(labels.mean() - slope * predictions.mean()))

    def check(self) -> None:
        """Raise a ValueError where the numbers cannot be those of a map."""
        if not all(_is_finite(number) for number in (self.slope, self.intercept)):
            raise ValueError(f"its affine map {self.slope!r}, {self.intercept!r} is not of finite numbers")


@dataclass(frozen=True)
class IsotonicMap:
    """A function that never falls, linear between knots, and constant before the first and behind the last."""

    predictions: tuple[float, ...]
    labels: tuple[float, ...]
    kind: str = "isotonic"

    def __call__(self, predictions: np.ndarray) -> np.ndarray:
        """The labels that predictions stand for, of the same shape, float64."""
        return np.interp(np.asarray(predictions, dtype=np.float64), self.predictions, self.labels)

    @classmethod
    def fitted(cls, predictions: np.ndarray, labels: np.ndarray) -> IsotonicMap:
        """The least squares of the labels among all functions that never fall."""
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(out_of_bounds="clip").fit(predictions, labels)
        return cls(tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist()))

    def check(self) -> None:
        """Raise a ValueError where the numbers cannot be those of a map."""
        for name, numbers in (("predictions", self.predictions), ("labels", self.labels)):
            if not numbers or not all(_is_finite(number) for number in numbers):
                raise ValueError(f"the {name} of its isotonic map are not finite numbers")
            if list(numbers) != sorted(numbers):
                raise ValueError(f"the {name} of its isotonic map fall")
        if len(self.predictions) != len(self.labels):
            raise ValueError("its isotonic map has not as many predictions as labels")


LabelMap = AffineMap | IsotonicMap
LABEL_MAPS: dict[str, type[AffineMap] | type[IsotonicMap]] = {"affine": AffineMap, "isotonic": IsotonicMap}


def check_kind(kind: str | None) -> None:
    """Raise a ValueError where there is no map of this kind."""
    if kind is not None and kind not in LABEL_MAPS:
        raise ValueError(f"`label_map={kind!r}` does not exist. Use one of {', '.join(LABEL_MAPS)}.")


def fitted(kind: str, predictions: np.ndarray, labels: np.ndarray) -> LabelMap:
    """The map of all rows.

    Args:
        kind: affine or isotonic.
        predictions, labels: of shape (rows,), float64.

    Raises:
        ValueError: there is no such kind, there are too few rows, or the predictions are all the same.
    """
    check_kind(kind)
    if len(labels) < _LEAST_ROWS:
        raise ValueError(
            f"`label_map={kind!r}` needs {_LEAST_ROWS} rows or more, and a few dozen to be of use: a map is learned "
            f"from some rows, and its errors from others. There are {len(labels)}. Calibrate on more rows."
        )
    if np.ptp(predictions) == 0:
        raise ValueError(
            f"All {len(labels)} predictions are {predictions[0]:.6g}, so `label_map={kind!r}` has nothing to learn "
            "from. Let the prompt ask for the number more plainly, or leave it out."
        )
    found = LABEL_MAPS[kind].fitted(predictions, labels)
    if found(predictions.max()) <= found(predictions.min()):
        warn(
            logger,
            f"The labels do not rise with the predictions, so `label_map={kind!r}` gives every row the mean label, "
            "whatever the model says. Look whether the prompt asks for what the labels mean.",
        )
    return found


def cross_fitted_errors(
    kind: str, predictions: np.ndarray, labels: np.ndarray, cut: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The absolute error of each row under a map that was learned from rows of other folds, of shape (rows,).

    Errors on the rows of the map itself would be too small: with 40 rows, intervals of level 0.9 from them cover 0.81
    under an isotonic map.

    Args:
        kind, predictions, labels: as in `fitted`.
        cut: brings mapped predictions into the range that predictions have.
    """
    # Rows may come in an order, as by label.
    fold = np.random.default_rng(0).permutation(len(labels)) % min(_FOLDS, len(labels))
    errors = np.empty(len(labels))
    for number in range(fold.max() + 1):
        inside = fold == number
        found = LABEL_MAPS[kind].fitted(predictions[~inside], labels[~inside])
        errors[inside] = np.abs(cut(found(predictions[inside])) - labels[inside])
    return errors


def read_map(read: Any) -> LabelMap:
    """The map that a calibration file holds.

    Raises:
        ValueError: it is none. The message says what is wrong.
    """
    kind = read.get("kind") if isinstance(read, Mapping) else None
    if kind not in LABEL_MAPS:
        raise ValueError(f"its map to the labels {read!r:.80} is not one of {', '.join(LABEL_MAPS)}")
    numbers = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    make: Any = LABEL_MAPS[kind]
    try:
        found: LabelMap = make(**numbers)
        found.check()
    except TypeError as error:
        raise ValueError(f"its {kind} map holds {', '.join(map(str, read))}") from error
    return found


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
