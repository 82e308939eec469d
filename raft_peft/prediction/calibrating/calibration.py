"""What held-out rows teach about a model's errors: the object that is saved beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raft_peft.distribution import GridDistribution
from raft_peft.methods.saved_folder import CALIBRATION_NAME, find_file
from raft_peft.prediction.calibrating.intervals.conformal import (
    central_intervals,
    rank_of,
    rounded_to_grid,
    spreads,
)
from raft_peft.prediction.calibrating.intervals.kinds import INTERVALS
from raft_peft.prediction.calibrating.label_map import LabelMap, read_map

USUAL_LEVEL = 0.9
WITH_MAP = "`predictor.calibrate(prompts, labels, label_map='affine')`"


@dataclass(frozen=True)
class Calibration:
    """Errors on held-out rows, saved beside the adapter as `calibration.json`.

    Intervals are those of split conformal prediction (Lei et al., "Distribution-free predictive inference for
    regression", JASA 2018). Where the rows to come are like the held-out ones (exchangeable with them), an interval of
    level 0.9 holds the label with a probability of at least 0.9, whatever the model. That is on average over rows, or
    with groups over the rows of each group, and for labels within the range of the grid and the held-out labels, at
    whose ends intervals are cut off.

    There are three kinds. Constant intervals are the prediction plus and minus a quantile of the held-out absolute
    errors. Adaptive ones are wide in proportion to the spread of the model's distribution, which is about its standard
    deviation (locally weighted conformal prediction, Lei et al., section 5.2). Quantiles are central intervals of the
    distribution itself, at the level that holds as many held-out labels as asked for (distributional conformal
    prediction, Chernozhukov, Wuthrich and Zhu, PNAS 2021).

    `errors`, `spreads`, `tails`, `mapped_errors` and `groups` have one entry a held-out row, in the same order.

    Attributes:
        errors: the absolute errors of the held-out rows, in the unit of the labels.
        low, high: the range of their labels and of the grid, which intervals do not leave; of a grid of one number,
            the range from 0 to it.
        temperature: what `GridDistribution.tempered` takes to make the distributions of the held-out rows as sure as
            they are right; None where the method has no distribution, or the grid holds one number alone.
        settings: how numbers were read off the model; intervals hold for these alone.
        spreads: of the distributions, see `conformal.spreads`; None where there are none.
        tails: how far out in its distribution each label lies, see `conformal.tails`; None where there are none.
        kind: of the intervals: constant, adaptive or quantiles.
        label_map: from predictions to labels; None where none was asked for.
        mapped_errors: the absolute errors of mapped predictions, each under a map that was learned from other rows.
        groups: the name of each row's group; None where all rows are one.
        group_column: the column of the rows that names the group; None where names came by themselves.
        grid: the numbers that the ends of intervals are rounded to; None where they are not.
        mean_widths: of intervals of level 0.9 on the held-out rows, by their kind; empty where rows are too few.
    """

    errors: tuple[float, ...]
    low: float
    high: float
    temperature: float | None
    settings: Mapping[str, Any]
    spreads: tuple[float, ...] | None = None
    tails: tuple[float, ...] | None = None
    kind: str = "constant"
    label_map: LabelMap | None = None
    mapped_errors: tuple[float, ...] | None = None
    groups: tuple[str, ...] | None = None
    group_column: str | None = None
    grid: tuple[float, ...] | None = None
    mean_widths: Mapping[str, float] = field(default_factory=dict)

    def mapped(self, predictions: np.ndarray) -> np.ndarray:
        """The labels that predictions stand for, within the range, float32, of the same shape.

        Raises:
            ValueError: no map was learned.
        """
        if self.label_map is None:
            raise ValueError(
                "The model was calibrated without a map from predictions to labels, so `calibrated=True` has nothing "
                f"to apply. Calibrate with one: {WITH_MAP}."
            )
        return np.clip(self.label_map(predictions), self.low, self.high).astype(np.float32)

    def intervals(
        self,
        predictions: np.ndarray,
        level: float,
        distribution: GridDistribution | None = None,
        groups: Sequence[str] | None = None,
        *,
        mapped: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the labels lie with a probability of at least `level`.

        Args:
            predictions: of shape (rows,); with `mapped`, mapped ones.
            level: the share of labels to be covered, between 0 and 1.
            distribution: of the same rows, for intervals that follow it.
            groups: the name of each row's group, where there are groups.
            mapped: whether the predictions went through the map.

        Returns:
            The lower and the upper ends, of shape (rows,), in the unit of the labels.

        Raises:
            ValueError: as in `half_width`.
        """
        predictions = np.asarray(predictions, dtype=np.float64)
        names = [None] * len(predictions) if self.groups is None else list(groups or ())
        if len(names) != len(predictions):
            raise ValueError(f"{self.covers_groups()}, so `groups` must name that of each row.")
        if self.follows_distribution and distribution is None:
            raise ValueError("Such intervals follow a distribution, and there is none.")
        if distribution is not None and self.kind == "quantiles":
            low, high = central_intervals(distribution, _of_each(names, lambda name: self.tail(level, name)))
        else:
            half = _of_each(names, lambda name: self.half_width(level, name, mapped=mapped))
            half = half * spreads(distribution) if distribution is not None and self.kind == "adaptive" else half
            low, high = predictions - half, predictions + half
        low, high = np.clip(low, self.low, self.high), np.clip(high, self.low, self.high)
        return (low, high) if self.grid is None else rounded_to_grid(low, high, np.array(self.grid))

    @property
    def follows_distribution(self) -> bool:
        """Whether the width of intervals follows the distribution."""
        return self.kind != "constant"

    def half_width(self, level: float, group: str | None = None, *, mapped: bool = False) -> float:
        """How far from its prediction a label lies at most, with a probability of at least `level`.

        Args:
            level: the share of labels to be covered, between 0 and 1.
            group: whose rows count; None for all.
            mapped: whether the prediction went through the map.

        Returns:
            In the unit of the labels; for adaptive intervals in spreads of the distribution.

        Raises:
            ValueError: the level is not between 0 and 1, or higher than so few held-out rows can warrant; or there is
                no such group.
        """
        errors = np.array((self.mapped_errors or ()) if mapped else self.errors)
        if self.kind == "adaptive":
            errors = errors / np.array(self.spreads)
        errors = self._of_group(errors, group)
        return float(np.sort(errors)[self._rank(level, len(errors), group) - 1])

    def tail(self, level: float, group: str | None = None) -> float:
        """The tail whose central interval holds a label with a probability of at least `level`: that of 1 - tail.

        Args and errors are those of `half_width`.
        """
        tails = self._of_group(np.array(self.tails or ()), group)
        # The rank counts from the least unusual label, whose tail is the greatest.
        return float(np.sort(tails)[len(tails) - self._rank(level, len(tails), group)])

    def check(self, level: float, group: str | None = None) -> None:
        """Raise a ValueError where no interval of a level can be given: of one group, or without it of any."""
        if group is None and self.groups is not None:
            group = max(self._rows_of, key=lambda name: len(self._rows_of[name]))
        self._rank(level, len(self._of_group(np.array(self.errors), group)), group)

    def covers_groups(self) -> str:
        """What the groups are, for messages."""
        names = sorted(self._rows_of)
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"The model was calibrated on the groups {shown}"

    def _of_group(self, scores: np.ndarray, group: str | None) -> np.ndarray:
        if group is None:
            return scores
        if group not in self._rows_of:
            raise ValueError(
                f"{self.covers_groups()}, and not on {group!r}. Calibrate on rows of this group too, or without "
                "`groups`."
            )
        return scores[self._rows_of[group]]

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """The rows of each group, in the order in which groups appear."""
        found: dict[str, list[int]] = {}
        for row, name in enumerate(self.groups or ()):
            found.setdefault(name, []).append(row)
        return found

    @staticmethod
    def _rank(level: float, rows: int, group: str | None) -> int:
        return rank_of(level, rows, "" if group is None else f" of the group {group!r}")

    def save(self, folder: str | Path) -> None:
        """Write `calibration.json` into a folder."""
        text = json.dumps(asdict(self), indent=1)
        (Path(folder) / CALIBRATION_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def find(cls, name: str, hub: Mapping[str, Any]) -> Calibration | None:
        """That of a folder or Hub repository, or None where it has none.

        Args:
            name: the folder or repository.
            hub: how the Hub is reached: `revision`, `token` and so on.

        Raises:
            ValueError: as in `load`.
        """
        path = find_file(name, CALIBRATION_NAME, hub)
        return None if path is None else cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a `calibration.json`, of this version or an earlier one.

        Raises:
            ValueError: the file is not one.
        """
        try:
            found = read_calibration(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a usable calibration: {error}. Remove it, and calibrate again with "
                "`predictor.calibrate(prompts, labels)`."
            ) from error
        return found


def _of_each(names: Sequence[str | None], score: Callable[[str | None], float]) -> np.ndarray:
    """A score for the group of each row, of shape (rows,), computed once a group."""
    found = {name: score(name) for name in dict.fromkeys(names)}
    return np.array([found[name] for name in names], dtype=np.float64)


def read_calibration(read: Any) -> Calibration:
    """The calibration that a file holds.

    Raises:
        ValueError: it is none. The message says what is wrong.
    """
    if not isinstance(read, dict):
        raise ValueError(f"it is {type(read).__name__}, and not an object")
    missing = [name for name in ("errors", "low", "high", "temperature", "settings") if name not in read]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    temperature, settings, kind = read["temperature"], read["settings"], read.get("kind", "constant")
    if not isinstance(settings, dict):
        raise ValueError("its settings are not an object")
    for name in ("low", "high"):
        if not _is_finite(read[name]):
            raise ValueError(f"its {name} {read[name]!r} is not a finite number")
    if read["low"] > read["high"]:
        raise ValueError(f"its range goes from {read['low']} down to {read['high']}")
    if temperature is not None and not (_is_finite(temperature) and temperature > 0):
        raise ValueError(f"its temperature {temperature!r} is not a finite number above 0")
    if kind not in INTERVALS:
        raise ValueError(f"its intervals are {kind!r}, which is none of {', '.join(INTERVALS)}")
    errors = _numbers(read, "errors", least=0)
    assert errors is not None
    tails = _numbers(read, "tails", least=0, greatest=1, count=len(errors))
    of_spreads = _numbers(read, "spreads", least=0, count=len(errors))
    for needs, scores in (("adaptive", of_spreads), ("quantiles", tails)):
        if kind == needs and scores is None:
            raise ValueError(f"its intervals are {kind}, and it has no scores for them")
    label_map = None if read.get("label_map") is None else read_map(read["label_map"])
    mapped_errors = _numbers(read, "mapped_errors", least=0, count=len(errors))
    if (label_map is None) != (mapped_errors is None):
        raise ValueError("of a map and its errors it has one alone")
    return Calibration(
        errors,
        float(read["low"]),
        float(read["high"]),
        None if temperature is None else float(temperature),
        settings,
        spreads=of_spreads,
        tails=tails,
        kind=kind,
        label_map=label_map,
        mapped_errors=mapped_errors,
        groups=_groups(read, len(errors)),
        group_column=read.get("group_column"),
        grid=_numbers(read, "grid"),
        mean_widths=read.get("mean_widths") or {},
    )


def _numbers(
    read: Mapping[str, Any],
    name: str,
    *,
    least: float = -math.inf,
    greatest: float = math.inf,
    count: int | None = None,
) -> tuple[float, ...] | None:
    """A list of numbers of a file; None where it has none of this name.

    Raises:
        ValueError: it is no list of finite numbers within these limits, or not of this length.
    """
    numbers, one = read.get(name), name.removesuffix("s")
    if numbers is None and name != "errors":
        return None
    if not isinstance(numbers, list) or not numbers:
        raise ValueError(f"its {name} are not a list of numbers")
    for number in numbers:
        if not _is_finite(number):
            raise ValueError(f"its {one} {number!r} is not a finite number")
    if min(numbers) < least:
        raise ValueError(f"its {one} {min(numbers)} is negative")
    if max(numbers) > greatest:
        raise ValueError(f"its {one} {max(numbers)} is above {greatest}")
    if count is not None and len(numbers) != count:
        raise ValueError(f"it has {len(numbers)} {name} for {count} errors")
    return tuple(float(number) for number in numbers)


def _groups(read: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    groups, column = read.get("groups"), read.get("group_column")
    if column is not None and not isinstance(column, str):
        raise ValueError(f"its group column {column!r} is not the name of one")
    if groups is None:
        return None
    if not isinstance(groups, list) or len(groups) != count or not all(isinstance(name, str) for name in groups):
        raise ValueError("its groups are not a list of one name for each error")
    return tuple(groups)


def _is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
