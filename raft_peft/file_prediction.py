"""Predictions of the rows of a file, appended to another as they are made."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raft_peft.grid import number_text
from raft_peft.predictor import RegressionPredictor
from raft_peft.row_files import RowWriter, read_rows

logger = logging.getLogger(__name__)

PREDICTION = "prediction"
PROBABILITIES = "probabilities"


def predict_file(
    predictor: RegressionPredictor,
    source: str | Path,
    target: str | Path,
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    chunk_size: int = 512,
    distribution: bool = False,
    show_progress: bool | None = None,
) -> int:
    """Predict a number for each row of a file, and write the rows with it to another.

    A run that was stopped is continued by the same call: what is in the target already is kept, and each row is there
    once, in the order of the source.

    Args:
        predictor: makes the predictions.
        source: JSON Lines or CSV with a `prompt` in each row: text, or in JSON Lines also chat messages.
        target: JSON Lines or CSV. A row holds all that it has in the source, and `prediction`, null (in CSV empty)
            where the model gave no number.
        batch_size, batch_tokens: as in [`RegressionPredictor.predict`].
        chunk_size: the rows that are predicted and written together.
        distribution: whether to add `probabilities`, those of each number of the grid by its text.
        show_progress: whether to show a progress bar.

    Returns:
        How many rows were predicted in this call.

    Raises:
        ValueError: a row or file that cannot be used, a target that was written from another source, or with
            `distribution` a method that gives a number alone. What was predicted before is in the target.
        OSError: the target cannot be written to.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{str(source)!r} would be overwritten by its own predictions. Write to another file.")
    rows = _checked(read_rows(source), source)
    with RowWriter(target) as writer:
        already = writer.rows
        _skip(rows, writer, source)
        pending: deque[Mapping[str, Any]] = deque()

        def remembered() -> Iterator[Mapping[str, Any]]:
            for row in rows:
                pending.append(row)
                yield row

        readings = predictor.read(
            remembered(),
            batch_size,
            batch_tokens=batch_tokens,
            chunk_size=chunk_size,
            first_row=already,
            show_progress=show_progress,
        )
        texts = _texts(predictor)
        for reading in readings:
            if distribution and reading.distribution is None:
                raise ValueError(
                    f"Method {predictor.settings.method!r} gives one number a row, and no distribution. Leave it out."
                )
            numbers = reading.predictions.tolist()
            made = [{**pending.popleft(), PREDICTION: number if math.isfinite(number) else None} for number in numbers]
            if distribution and reading.distribution is not None:
                for row, probabilities in zip(made, reading.distribution.probs.tolist(), strict=True):
                    finite = [number if math.isfinite(number) else None for number in probabilities]
                    row[PROBABILITIES] = dict(zip(texts, finite, strict=True))
            writer.write(made)
        return writer.rows - already


def _texts(predictor: RegressionPredictor) -> Sequence[str]:
    """The texts of the numbers that the predictor's head has probabilities for."""
    grid, values = predictor.grid, predictor.readout.values.tolist()
    return (
        grid.texts
        if values == np.asarray(grid.values, np.float32).tolist()
        else [number_text(value) for value in values]
    )


def _checked(rows: Iterator[dict[str, Any]], source: str | Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):  # from 0, as in the messages of the encoder
        if "prompt" not in row:
            raise ValueError(
                f"Row {number} of {source} has the columns {list(row)}, and no `prompt`. Rename the column "
                "of the text."
            )
        for name in (PREDICTION, PROBABILITIES):
            if name in row:
                raise ValueError(f"{source} has a column {name!r} already. Rename it.")
        yield row


def _skip(rows: Iterator[dict[str, Any]], writer: RowWriter, source: str | Path) -> None:
    """Pass over the rows that are in the target already."""
    row = None
    for _ in range(writer.rows):
        row = next(rows, None)
        if row is None:
            break
    if writer.rows == 0:
        return
    if row is None or not writer.continues(row):
        raise ValueError(
            f"{writer.path} holds {writer.rows} rows that were not written from {source}. Write to another file, or "
            "remove it."
        )
    logger.warning(f"{writer.path} holds {writer.rows} rows already. Prediction goes on behind them.")
