"""Targets: reading them from rows, and knowing which of them a grid can express."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from raft_peft.data.prompts import rows_error
from raft_peft.grid import NumberGrid, number_text


def with_number(row: Mapping[str, Any], label_column: str) -> Mapping[str, Any]:
    """A row whose label is a number where it is the text of one, as all is in CSV."""
    try:
        return {**row, label_column: float(row[label_column])} if isinstance(row.get(label_column), str) else row
    except ValueError:
        return row  # which `read_labels` refuses, with the row's number


def has_label(row: Mapping[str, Any], label_column: str) -> bool:
    """Whether rows such as this one hold a target, as a label or as a completion."""
    return label_column in row or "completion" in row


def read_labels(
    rows: Sequence[Mapping[str, Any]], grid: NumberGrid, label_column: str, first_row: int = 0
) -> list[float]:
    """The target of each row as a float: its label, or the number that its completion holds.

    Args:
        rows: rows with the label column, or with a `completion`: a number, its text, a text of the grid, or one
            assistant message of such a text.
        grid: its texts are read as its values.
        label_column: the column of the label.
        first_row: the number of the first row in its dataset, for error messages.

    Raises:
        ValueError: labels that are missing, not numbers, NaN or infinite. The message names the rows.
    """
    labels: list[float] = []
    errors: list[tuple[int, str]] = []
    for number, row in enumerate(rows, first_row):
        try:
            labels.append(_read_label(row, grid, label_column))
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


def as_number(text: str) -> float | None:
    """The number that a text writes; None where it writes none."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_label(row: Mapping[str, Any], grid: NumberGrid, label_column: str) -> float:
    if row.get(label_column) is not None:
        label = row[label_column]
        if not isinstance(label, Real):
            raise ValueError(f"the label {label!r} is not a number. Convert the column {label_column!r} to floats.")
        value = float(label)
    elif row.get("completion") is not None:
        value = _read_completion(row["completion"], grid)
    else:
        raise ValueError(f"the label is missing. Fill the column {label_column!r}, or drop the row.")
    if not math.isfinite(value):
        raise ValueError(f"the label is {value}. Drop the row or repair its label.")
    return value


def _read_completion(completion: Any, grid: NumberGrid) -> float:
    if isinstance(completion, Real):
        return float(completion)
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
