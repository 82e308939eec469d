"""Predictions of the rows of a file, appended to another as they are made."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raft_peft.data.prompt_template import prompt_writer
from raft_peft.data.row_files import RowWriter, read_rows
from raft_peft.data.rows import each
from raft_peft.prediction.identity import identity_of
from raft_peft.prediction.predictor import RegressionPredictor

logger = logging.getLogger(__name__)

PREDICTION = "prediction"
INTERVAL = ("prediction_low", "prediction_high")
PROBABILITIES = "probabilities"


def predict_rows(
    predictor: RegressionPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    chunk_size: int = 512,
    distribution: bool = False,
    interval: float | None = None,
    prompt_template: str | None = None,
    first_row: int = 0,
    show_progress: bool | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Predict a number for each of many rows, as they are read.

    Args:
        predictor: makes the predictions.
        rows: with a `prompt` each: dicts, a data frame or a dataset.
        batch_size, batch_tokens: as in [`RegressionPredictor.predict`].
        chunk_size: the rows that are predicted and given together.
        distribution: whether to add `probabilities`, those of each number of the grid by its text.
        interval: the share of labels that `prediction_low` and `prediction_high`, which are added, are to cover, as
            in [`RegressionPredictor.predict`].
        prompt_template: the prompt, from the columns of a row in braces; by default its `prompt`.
        first_row: the number of the first row, for messages.
        show_progress: whether to show a progress bar.

    Yields:
        The rows of each chunk, in their order, with `prediction`, None where the model gave no number.

    Raises:
        ValueError: a row that cannot be used, or with `distribution` a method that gives a number alone.
    """
    write_prompt = prompt_writer(prompt_template)
    if interval is not None:
        predictor.calibrated().half_width(interval)
    pending: deque[Mapping[str, Any]] = deque()

    def prompts() -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(each(rows), first_row):
            prompted = write_prompt(row)
            if "prompt" not in prompted and "input_ids" not in prompted:
                raise ValueError(
                    f"Row {number} has the columns {list(row)}, and no `prompt`. Rename the column of the text, or "
                    "give a prompt template."
                )
            for name in (PREDICTION, *INTERVAL, PROBABILITIES):
                if name in row:
                    raise ValueError(f"Row {number} has a column {name!r} already. Rename it.")
            pending.append(row)
            yield prompted

    for reading in predictor.read(
        prompts(),
        batch_size,
        batch_tokens=batch_tokens,
        chunk_size=chunk_size,
        first_row=first_row,
        show_progress=show_progress,
    ):
        if distribution and reading.distribution is None:
            raise ValueError(
                f"Method {predictor.settings.method!r} gives one number a row, and no distribution. Leave it out."
            )
        numbers = reading.predictions.tolist()
        made = [{**pending.popleft(), PREDICTION: number if math.isfinite(number) else None} for number in numbers]
        if interval is not None:
            ends = predictor.calibrated().intervals(reading.predictions.numpy(), interval)
            for name, numbers_of_end in zip(INTERVAL, ends, strict=True):
                for row, number in zip(made, numbers_of_end.tolist(), strict=True):
                    row[name] = number if math.isfinite(number) else None
        if distribution and reading.distribution is not None:
            for row, probabilities in zip(made, reading.distribution.probs.tolist(), strict=True):
                finite = [number if math.isfinite(number) else None for number in probabilities]
                row[PROBABILITIES] = dict(zip(predictor.texts, finite, strict=True))
        yield made


def predict_file(predictor: RegressionPredictor, source: str | Path, target: str | Path, **options: Any) -> int:
    """Predict a number for each row of a file, and write the rows with it to another.

    A run that was stopped is continued by the same call: what is in the target already is kept, and each row is there
    once, in the order of the source. What made the rows (weights, grid, settings) is noted beside the target, in
    `NAME.made_by.json`; a target that another model or other settings began, or other rows, is refused. Where there is
    no note, as beside a target of a version before this, rows alone are compared, and a warning says so.

    Args:
        predictor: makes the predictions.
        source: JSON Lines or CSV with a `prompt` in each row: text, or in JSON Lines also chat messages.
        target: JSON Lines or CSV. A row holds all that it has in the source, and `prediction`, null (in CSV empty)
            where the model gave no number.
        options: `batch_size`, `batch_tokens`, `chunk_size` (the rows that are written together), `distribution`,
            `interval`, `prompt_template` and `show_progress`, as in [`predict_rows`].

    Returns:
        How many rows were predicted in this call.

    Raises:
        ValueError: a row or file that cannot be used, a target that was written from other rows or by another model
            or settings, or with `distribution` a method that gives a number alone. What was predicted before is in
            the target.
        OSError: the target cannot be written to, or is being written by another process.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{str(source)!r} would be overwritten by its own predictions. Write to another file.")
    rows = read_rows(source)
    made_by = identity_of(predictor, interval=options.get("interval"), prompt_template=options.get("prompt_template"))
    with RowWriter(target, made_by) as writer:
        already = writer.rows
        _skip(rows, writer, source)
        added = None if writer.last is None else _added(writer.last)
        for made in predict_rows(predictor, rows, first_row=already, **options):
            if added is not None and added != _added(made[0]):
                raise ValueError(
                    f"{writer.path} was written with other options: its rows have {', '.join(sorted(added))}, and "
                    f"these would have {', '.join(sorted(_added(made[0])))}. Write to another file."
                )
            writer.write(made)
        return writer.rows - already


def _added(row: Mapping[str, Any]) -> set[str]:
    return {PREDICTION, *INTERVAL, PROBABILITIES} & set(row)


def _skip(rows: Iterator[dict[str, Any]], writer: RowWriter, source: str | Path) -> None:
    """Pass over the rows that are in the target already."""
    if writer.rows == 0:
        return
    same = writer.begins_with(rows)
    if same < writer.rows:
        raise ValueError(
            f"{writer.path} holds {writer.rows} rows that were not written from {source} as it is now: row {same} is "
            "another, or is not there. Put the rows back in their order, write to another file, or remove it."
        )
    logger.warning(f"{writer.path} holds {writer.rows} rows already. Prediction goes on behind them.")
