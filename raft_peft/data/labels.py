"""Targets: reading them from rows, and knowing which of them a grid can express."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from datasets import ClassLabel

from raft_peft.data.prompts import rows_error
from raft_peft.grid import NumberGrid, meant_number, number_text

DEFAULT_COLUMN = "label"


@dataclass(frozen=True)
class LabelColumn:
    """The column of the label, and how its values are meant.

    Attributes:
        name: of the column. A numeric `completion` stands in for `label`, and for no column of another name.
        precision: the type of a column of numbers that are not float64, such as float32, where it is known.
        class_names: the names of the classes whose indices a `ClassLabel` column holds; None for a column of numbers.
    """

    name: str = DEFAULT_COLUMN
    precision: str | None = None
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, name: str, feature: Any = None) -> LabelColumn:
        """The column of this name.

        Args:
            name: of the column.
            feature: its type in `Dataset.features`; None where it is not known.
        """
        if isinstance(feature, ClassLabel):
            return cls(name, class_names=tuple(feature.names))
        dtype = getattr(feature, "dtype", None)
        return cls(name, precision=dtype if dtype in ("float16", "float32") else None)

    def raw(self, row: Mapping[str, Any]) -> Any:
        """What a row holds as its label, None where that is nothing."""
        value = row.get(self.name)
        # GLUE and others mark the classes that they keep secret by -1.
        if self.class_names is not None and isinstance(value, int) and value < 0:
            value = None
        return row.get("completion") if value is None and self.name == DEFAULT_COLUMN else value

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
            f"The column {self.name!r} holds the indices, from 0, of classes named {shown}, which are not numbers, so "
            "which number each stands for is not known. To train on the indices themselves, say so: "
            f"dataset.cast_column({self.name!r}, Value('int64')). For other numbers, map the column to them."
        )


def with_number(row: Mapping[str, Any], label_column: str) -> Mapping[str, Any]:
    """A row whose label is a number where it is the text of one, as all is in CSV."""
    try:
        return {**row, label_column: float(row[label_column])} if isinstance(row.get(label_column), str) else row
    except ValueError:
        return row  # which `read_labels` refuses, with the row's number


def read_labels(
    rows: Sequence[Mapping[str, Any]], grid: NumberGrid, column: LabelColumn, first_row: int = 0
) -> list[float]:
    """The target of each row as a float: its label, or the number that its completion holds.

    Args:
        rows: rows with the label column, or with a `completion`: a number, its text, a text of the grid, or one
            assistant message of such a text.
        grid: its texts are read as its values.
        column: the column of the label.
        first_row: the number of the first row in its dataset, for error messages.

    Raises:
        ValueError: labels that are missing, not numbers, NaN or infinite, or booleans where the grid is not 0 and 1;
            a column of classes whose names are not numbers. The message names the rows.
    """
    labels: list[float] = []
    errors: list[tuple[int, str]] = []
    class_values = column.class_values(grid)
    for number, row in enumerate(rows, first_row):
        try:
            labels.append(_read_label(row, grid, column, class_values))
        except ValueError as error:
            errors.append((number, str(error)))
    if errors:
        raise rows_error(errors)
    return labels


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
            "grid, where the loss would have no lower bound. Scale the labels, or widen the grid.",
        )
        for row, label in enumerate(labels, first_row)
        if not low <= label <= high
    ]
    if outside:
        raise rows_error(outside)


def label_range(grid: NumberGrid, *, renormalize: bool) -> tuple[float, float]:
    """The least and the greatest prediction that the grid can express.

    Over the whole vocabulary the probabilities of the grid sum to anything from 0 to 1, so 0 can always be reached;
    renormalised they sum to 1.
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


def _read_label(
    row: Mapping[str, Any], grid: NumberGrid, column: LabelColumn, class_values: list[float] | None
) -> float:
    label = column.raw(row)
    if label is None:
        where = f"Fill the column {column.name!r}" if column.is_in(row) else _no_column(row, column.name)
        raise ValueError(f"the label is missing. {where}, or drop the row.")
    if row.get(column.name) is None:
        value = _read_completion(label, grid)
    elif class_values is not None and isinstance(label, int):
        if label >= len(class_values):
            raise ValueError(f"the label is class {label}, and there are {len(class_values)} classes from 0.")
        value = class_values[label]
    else:
        value = _as_label(label, grid, column)
    if not math.isfinite(value):
        raise ValueError(f"the label is {value}. Drop the row or repair its label.")
    return value


def _no_column(row: Mapping[str, Any], name: str) -> str:
    return f"The row has the columns {sorted(map(str, row))}, and no {name!r}: rename one, set `label_column`"


def _as_label(label: Any, grid: NumberGrid, column: LabelColumn) -> float:
    """A label as a float.

    Raises:
        ValueError: it is not a number.
    """
    is_scalar = getattr(label, "ndim", None) == 0 and not isinstance(label, str | bytes)
    if isinstance(label, bool) or (is_scalar and "bool" in str(label.dtype)):
        if set(grid.values) != {0.0, 1.0}:
            raise ValueError(
                f"the label is {bool(label)}, and the grid is not 0 and 1. Write the number that it stands for."
            )
        return float(label)
    if isinstance(label, Real | Decimal) or is_scalar:
        try:
            return meant_number(label, column.precision)
        # A RuntimeError is torch's, of a complex number.
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise ValueError(f"the label {label!r} is not a number. Convert the column {column.name!r} to floats.")


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
