"""Targets: reading them from rows, and knowing which of them a grid can express."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from datasets import ClassLabel, Value

from raft_peft.data.prompts import rows_error
from raft_peft.data.ratings import Ratings, is_ratings
from raft_peft.grid import NumberGrid, meant_number, number_text

DEFAULT_COLUMN = "label"


@dataclass(frozen=True)
class LabelColumn:
    """The column of the label, and how its values are meant.

    Attributes:
        name: of the column. A numeric `completion` stands in for `label`, and for no column of another name.
        precision: the type of a column of numbers that are not float64, such as float32, where it is known.
        class_names: the names of the classes whose indices a `ClassLabel` column holds; None for a column of numbers.
        may_hold_ratings: whether the column may hold lists of ratings, or mappings of shares.
    """

    name: str = DEFAULT_COLUMN
    precision: str | None = None
    class_names: tuple[str, ...] | None = None
    may_hold_ratings: bool = True

    @classmethod
    def of(cls, name: str, feature: Any = None) -> LabelColumn:
        """The column of this name.

        Args:
            name: of the column.
            feature: its type in `Dataset.features`; None where it is not known.
        """
        may_hold_ratings = not isinstance(feature, ClassLabel | Value)
        one = getattr(feature, "feature", feature)  # of a list
        if isinstance(one, ClassLabel):
            return cls(name, class_names=tuple(one.names), may_hold_ratings=may_hold_ratings)
        dtype = getattr(one, "dtype", None)
        precision = dtype if dtype in ("float16", "float32") else None
        return cls(name, precision=precision, may_hold_ratings=may_hold_ratings)

    def raw(self, row: Mapping[str, Any]) -> Any:
        """What a row holds as its label, None where that is nothing."""
        value = self.own(row)
        return row.get("completion") if value is None and self.name == DEFAULT_COLUMN else value

    def own(self, row: Mapping[str, Any]) -> Any:
        """The same, of the column itself, without a completion in its place."""
        value = row.get(self.name)
        # GLUE and others mark the classes that they keep secret by -1.
        if self.class_names is not None and isinstance(value, int) and value < 0:
            return None
        # A table adds the key of every mapping to all rows, also to those without a label.
        if isinstance(value, Mapping) and value and all(share is None for share in value.values()):
            return None
        return value

    def is_in(self, names: Container[str]) -> bool:
        """Whether rows of these columns can hold a label."""
        return self.name in names or (self.name == DEFAULT_COLUMN and "completion" in names)

    def class_values(self, grid: NumberGrid) -> list[float] | None:
        """The number of each class, which its name writes: as a number, or as the grid writes its own.

        Raises:
            ValueError: a name is neither.
        """
        if self.class_names is None:
            return None
        texts = {text.strip(): value for value, text in grid}
        values = [texts.get(name.strip(), as_number(name)) for name in self.class_names]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) == len(self.class_names):
            return known
        shown = ", ".join(map(repr, self.class_names[:5]))
        raise ValueError(
            f"The column {self.name!r} holds the indices, from 0, of classes named {shown}. These names are not "
            "numbers, so the numbers of the classes are not known. To train on the indices themselves: "
            f"dataset.cast_column({self.name!r}, Value('int64')). For other numbers, map the column to them."
        )


def with_number(row: Mapping[str, Any], label_column: str) -> Mapping[str, Any]:
    """A row whose label is a number, or ratings, where it is the text of such, as all is in CSV.

    The text of ratings is JSON, as `[3, 4, 4]` or `{"3": 0.5, "4": 0.5}`.
    """
    text = row.get(label_column)
    if not isinstance(text, str):
        return row
    number = as_number(text)
    if number is not None:
        return {**row, label_column: number}
    try:
        label = json.loads(text)
    except ValueError:
        return row  # which `read_labels` refuses, with the row's number
    return {**row, label_column: label} if isinstance(label, list | dict) else row


def read_labels(
    rows: Sequence[Mapping[str, Any]], grid: NumberGrid, column: LabelColumn, first_row: int = 0
) -> list[float]:
    """The target of each row as a float: its label, the mean of its ratings, or the number that its completion holds.

    Args, Raises: as in [`read_targets`].
    """
    return means_of(read_targets(rows, grid, column, first_row))


def read_ratings(
    rows: Sequence[Mapping[str, Any]], grid: NumberGrid, column: LabelColumn, first_row: int = 0
) -> list[Ratings | None]:
    """The ratings of each row, None where its label is one number.

    Args, Raises: as in [`read_targets`].
    """
    return ratings_among(read_targets(rows, grid, column, first_row))


def read_targets(
    rows: Sequence[Mapping[str, Any]], grid: NumberGrid, column: LabelColumn, first_row: int = 0
) -> list[float | Ratings]:
    """The target of each row: a float, or where the label is a list or a mapping, its ratings.

    Args:
        rows: rows with the label column, or with a `completion`: a number, its text, a text of the grid, or one
            assistant message of such a text.
        grid: its texts are read as its values.
        column: the column of the label.
        first_row: the number of the first row in its dataset, for error messages.

    Raises:
        ValueError: labels or ratings that are missing, not numbers, NaN or infinite, or booleans where the grid is not
            0 and 1; shares that are negative or do not sum to 1; a column of classes whose names are not numbers. The
            message names the rows.
    """
    targets: list[float | Ratings] = []
    errors: list[tuple[int, str]] = []
    class_values = column.class_values(grid)
    for number, row in enumerate(rows, first_row):
        try:
            targets.append(_read_target(row, grid, column, class_values))
        except ValueError as error:
            errors.append((number, str(error)))
    if errors:
        raise rows_error(errors)
    return targets


def means_of(targets: Sequence[float | Ratings]) -> list[float]:
    """Each target as one number: ratings as their mean."""
    return [target.mean if isinstance(target, Ratings) else target for target in targets]


def ratings_among(targets: Sequence[float | Ratings]) -> list[Ratings | None]:
    """The ratings among targets, None in the place of a target that is one number."""
    return [target if isinstance(target, Ratings) else None for target in targets]


def written_labels(targets: Sequence[float | Ratings], grid: NumberGrid) -> list[float]:
    """Each target as the number that is written for it: the mean of ratings is rounded, to about three digits.

    The mean of three ratings, such as 3.6666666666666665, would be more tokens than a model decodes. It is rounded to
    a hundredth where the grid is 1 to 9 units wide, and accordingly where it is wider or narrower.
    """
    low, high = range_of_grid(grid)
    decimals = 2 - math.floor(math.log10(high - low)) if high > low else 2
    return [round(target.mean, max(0, decimals)) if isinstance(target, Ratings) else target for target in targets]


def target_texts(labels: Sequence[float], grid: NumberGrid, first_row: int = 0) -> list[str]:
    """The text that each target is written as: the grid's own where it is on the grid.

    Between its values it is the shortest decimal text for a grid of such texts, and the text of the nearest value for
    one that writes decimals in a way of its own, as tokens of their own need.

    Raises:
        ValueError: the grid has no text for some. The message names the rows.
    """
    texts = dict(grid)
    if not grid.is_plain and all(as_number(text) == value for value, text in grid):
        low, high = label_range(grid, renormalize=True)
        texts |= {
            label: min(grid, key=lambda pair: abs(pair[0] - label))[1]
            for label in labels
            if label not in texts and low <= label <= high
        }
    without = [(row, label) for row, label in enumerate(labels, first_row) if label not in texts]
    if without and not grid.is_plain:
        reason = (
            f"has no text: this grid writes numbers as {', '.join(grid.texts)}. Round the label to the grid, or use a "
            "method that needs no text, such as raft."
        )
        raise rows_error([(row, f"the label {number_text(label)} {reason}") for row, label in without])
    return [texts.get(label, number_text(label)) for label in labels]


def check_within(labels: Sequence[float], grid: NumberGrid, first_row: int = 0) -> None:
    """Raise a ValueError that names the rows whose label lies outside the grid's range."""
    low, high = label_range(grid, renormalize=True)
    outside = [
        (
            row,
            f"the label {number_text(label)} lies outside {number_text(low)} to {number_text(high)}, the range of the "
            "grid, beyond which this loss is not defined. Scale the labels, or widen the grid.",
        )
        for row, label in enumerate(labels, first_row)
        if not low <= label <= high
    ]
    if outside:
        raise rows_error(outside)


def label_range(grid: NumberGrid, *, renormalize: bool) -> tuple[float, float]:
    """The least and the greatest prediction that the grid can express.

    Over the whole vocabulary the probabilities of the grid sum to anything from 0 to 1, so 0 can always be reached;
    renormalized they sum to 1.
    """
    low, high = min(grid.values), max(grid.values)
    return (low, high) if renormalize else (min(0.0, low), max(0.0, high))


def range_of_grid(grid: NumberGrid) -> tuple[float, float]:
    """The range that the labels of a grid are meant to lie in: its own; of one number alone, from 0 to it.

    The expectation of one number lies between 0 and it (the paper's Table 13).
    """
    return label_range(grid, renormalize=len(grid) > 1)


def as_number(text: str) -> float | None:
    """The number that a text writes; None where it writes none."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_target(
    row: Mapping[str, Any], grid: NumberGrid, column: LabelColumn, class_values: list[float] | None
) -> float | Ratings:
    label = column.raw(row)
    if label is None:
        where = f"Fill the column {column.name!r}" if column.is_in(row) else _no_column(row, column.name)
        raise ValueError(f"the label is missing. {where}, or drop the row.")
    if column.own(row) is None:
        value = _read_completion(label, grid)
    elif isinstance(label, Ratings):
        return label
    elif is_ratings(label):
        return Ratings.of(label, lambda rating: _read_number(rating, grid, column, class_values, "rating"))
    else:
        value = _read_number(label, grid, column, class_values, "label")
    if not math.isfinite(value):
        raise ValueError(f"the label is {value}. Drop the row or repair its label.")
    return value


def _read_number(
    label: Any, grid: NumberGrid, column: LabelColumn, class_values: list[float] | None, what: str
) -> float:
    """A label or a rating as a float."""
    if class_values is None or not isinstance(label, int):
        return _as_label(label, grid, column, what)
    if not 0 <= label < len(class_values):
        raise ValueError(f"the {what} is class {label}, and there are {len(class_values)} classes from 0.")
    return class_values[label]


def _no_column(row: Mapping[str, Any], name: str) -> str:
    return f"The row has the columns {sorted(map(str, row))}, and no {name!r}: rename one, set `label_column`"


def _as_label(label: Any, grid: NumberGrid, column: LabelColumn, what: str = "label") -> float:
    """A label or a rating as a float.

    Raises:
        ValueError: it is not a number.
    """
    is_scalar = getattr(label, "ndim", None) == 0 and not isinstance(label, str | bytes)
    if isinstance(label, bool) or (is_scalar and "bool" in str(label.dtype)):
        if set(grid.values) != {0.0, 1.0}:
            raise ValueError(
                f"the {what} is {bool(label)}, and the grid is not 0 and 1. Write the number that it stands for."
            )
        return float(label)
    if isinstance(label, Real | Decimal) or is_scalar:
        try:
            return meant_number(label, column.precision)
        # A RuntimeError is torch's, of a complex number.
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise ValueError(f"the {what} {label!r:.80} is not a number. Convert the column {column.name!r} to floats.")


def _read_completion(completion: Any, grid: NumberGrid) -> float:
    if isinstance(completion, Real | Decimal):
        return _as_label(completion, grid, LabelColumn("completion"))
    text = completion
    if isinstance(completion, Sequence) and len(completion) == 1 and isinstance(completion[0], Mapping):
        text = completion[0].get("content")
    if isinstance(text, str):
        for value, grid_text in grid:
            if text.strip() == grid_text.strip():
                return value
        number = as_number(text)
        if number is not None:
            return number
    raise ValueError(f"the completion {completion!r} is not a number. Give a numeric completion or a float label.")
