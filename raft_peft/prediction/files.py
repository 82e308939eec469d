"""Predictions of the rows of a file, appended to another as they are made."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from raft_peft.data.row_files import RowWriter, is_table
from raft_peft.data.row_sources import read_rows
from raft_peft.data.rows import each
from raft_peft.decisions import chooses_from_grid
from raft_peft.methods.readout import Reading
from raft_peft.prediction.calibrating.applied import AppliedCalibration
from raft_peft.prediction.identity import identity_of
from raft_peft.prediction.number_predictor import NumberPredictor
from raft_peft.prediction.questions.answering import Answering
from raft_peft.prediction.reasoning.columns import REASON_COLUMNS, REASONINGS, reason_columns
from raft_peft.prediction.reasoning.reasoned import ReasonedReading
from raft_peft.prediction.reasoning.writer import ReasoningOptions

logger = logging.getLogger(__name__)

PREDICTION = "prediction"
INTERVAL = ("low", "high")
PROBABILITIES = "probabilities"
MASS, ENTROPY = "mass", "entropy"

# What a run that is killed has lost is one chunk at most, and a reasoning takes as long as hundreds of numbers.
_CHUNK, _CHUNK_WITH_REASONINGS = 512, 64

# float32 holds 7 digits, and the products and sums of a model leave 6 of them. bfloat16 holds 2 to 3 digits of a logit
# and float16 holds 3: of a number that is computed from many of them, 4 tell two rows apart.
_DIGITS, _DIGITS_OF_HALF = 6, 4


def predict_rows(
    predictor: NumberPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    chunk_size: int | None = None,
    distribution: bool = False,
    as_columns: bool = False,
    interval: float | None = None,
    calibrated: bool = False,
    reasons: bool = False,
    first_row: int = 0,
    show_progress: bool | None = None,
    **reasoning: Unpack[ReasoningOptions],
) -> Iterator[list[dict[str, Any]]]:
    """Predict a number for each of many rows, as they are read.

    Numbers have as many digits as mean something: 6, or 4 where they are computed in bfloat16 or float16. A number
    that a decision or a text chooses is exact. The ends of intervals are rounded outwards.

    Args:
        predictor: makes the predictions: a [`RegressionPredictor`], or one of a server.
        rows: with a `prompt` each, or the columns of the model's prompt template: dicts, a data frame or a dataset.
        batch_size, batch_tokens: as in [`RegressionPredictor.predict`].
        chunk_size: the rows that are predicted and given together. By default 512, and 64 where reasonings are
            written.
        distribution: whether to add `probabilities`, those of each number of the grid by its text; their sum, `mass`;
            and their `entropy` in nats, as in [`GridDistribution`].
        as_columns: whether each probability is a column of its own, `p_1` for the number 1, as a table has them.
        interval: the share of labels that the interval from `low` to `high`, which are added, is to cover, as in
            [`RegressionPredictor.predict`]. The group of a row is in the column that the calibration was made with.
        calibrated: map the predictions to labels, as in [`RegressionPredictor.predict`].
        reasons: whether to add what [`ReasonedPredictions`] has of a row: the `reasonings`, the prediction behind each
            as `numbers`, how far these differ as `between`, `within`, and how many are `unfinished`. In a table the
            lists are JSON.
        first_row: the number of the first row, for messages.
        show_progress: whether to show a progress bar.
        reasoning: `num_reasonings`, `temperature`, `max_reasoning_tokens` and `seed`, as in
            [`RegressionPredictor.predict`].

    Yields:
        The rows of each chunk, in their order, with `prediction`, None where the model gave no number.

    Raises:
        ValueError: a row that cannot be used, or with `distribution` a method that gives a number alone.
    """
    columns = _Columns(
        predictor,
        distribution=distribution,
        as_columns=as_columns,
        interval=interval,
        calibrated=calibrated,
        reasons=reasons,
    )
    writer = predictor.writer(**reasoning, batch_size=batch_size)
    applied = AppliedCalibration.of_predictor(predictor, interval=interval, mapped=calibrated, writer=writer)
    pending: deque[Mapping[str, Any]] = deque()

    def prompts() -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(each(rows), first_row):
            columns.check(row, number)
            pending.append(row)
            yield row

    for chunk in predictor.read_reasonings(
        applied.prompts(prompts(), first_row),
        batch_size,
        batch_tokens=batch_tokens,
        chunk_size=chunk_size or (_CHUNK if writer is None else _CHUNK_WITH_REASONINGS),
        first_row=first_row,
        writer=writer,
        show_progress=show_progress,
    ):
        yield [{**pending.popleft(), **made} for made in columns.of(chunk, applied)]


class _Columns:
    """What is added to the rows.

    Args:
        predictor, distribution, as_columns, interval, calibrated, reasons: as in [`predict_rows`].

    Raises:
        ValueError: reasons are asked for, and no words are known that lead from a reasoning to its score.
    """

    def __init__(
        self,
        predictor: NumberPredictor,
        *,
        distribution: bool,
        as_columns: bool,
        interval: float | None,
        calibrated: bool,
        reasons: bool,
    ):
        if reasons and not predictor.reads_reasonings:
            raise ValueError(
                "`reasons` are what the model wrote before its numbers, and no words are known that lead from a "
                "reasoning to its score. Pass `score_prefix`, such as '\\n[RESULT] '."
            )
        self._predictor, self._reasons = predictor, reasons
        self._distribution, self._as_columns = distribution, as_columns
        self._rounded = partial(rounded, digits=digits_of(predictor))
        # A number of the grid or of a text is what it is.
        chosen = chooses_from_grid(predictor.settings.decision) or predictor.reads_text
        self._exact = chosen and not calibrated
        self._of_grid = [f"p_{text}" for text in predictor.texts] if as_columns else [PROBABILITIES]
        self.of_distribution = (*self._of_grid, MASS, ENTROPY) if distribution else ()
        of_interval = INTERVAL if interval is not None else ()
        self.names = (PREDICTION, *of_interval, *self.of_distribution, *(REASON_COLUMNS if reasons else ()))

    def check(self, row: Mapping[str, Any], number: int) -> None:
        """Raise a ValueError where a row has no prompt, or a column of a name that is added.

        Args:
            row: as it was read.
            number: its own, for messages.
        """
        if not self._predictor.prompt_form.has_prompt(row):
            raise ValueError(
                f"Row {number} has the columns {list(row)}, and {self._predictor.prompt_form.what_is_missing()}. "
                "Rename the column of the text, or set `prompt_template`."
            )
        for name in self.names:
            if name in row:
                raise ValueError(f"Row {number} has a column {name!r} already. Rename it.")

    def of(self, chunk: ReasonedReading, applied: AppliedCalibration) -> list[dict[str, Any]]:
        """The columns of each row of a chunk, of which the calibration makes predictions and intervals.

        Raises:
            ValueError: there is no distribution.
        """
        made = self._of_rows(chunk.of_rows, applied)
        if not self._reasons:
            return made
        reasons = reason_columns(chunk, self._rounded)
        return [{**row, **more} for row, more in zip(made, reasons, strict=True)]

    def _of_rows(self, reading: Reading, applied: AppliedCalibration) -> list[dict[str, Any]]:
        predictions, ends = applied.of(reading.predictions.numpy(), reading.distribution)
        numbers = [_shortest(number) if self._exact else self._rounded(number) for number in predictions]
        made: list[dict[str, Any]] = [{PREDICTION: number} for number in numbers]
        if ends is not None:
            directions = (ROUND_HALF_EVEN,) * 2 if applied.rounds_to_grid else (ROUND_FLOOR, ROUND_CEILING)
            for name, of_rows, direction in zip(INTERVAL, ends, directions, strict=True):
                for row, number in zip(made, of_rows, strict=True):
                    row[name] = self._rounded(number, direction)
        if not self._distribution:
            return made
        distribution = reading.distribution
        if distribution is None:
            raise ValueError(
                f"Method {self._predictor.settings.method!r} gives one number a row, and no distribution. Leave out "
                "`distribution`."
            )
        for row, probabilities in zip(made, distribution.probs.tolist(), strict=True):
            names = self._of_grid if self._as_columns else self._predictor.texts
            found = dict(zip(names, map(self._rounded, probabilities), strict=True))
            row |= found if self._as_columns else {PROBABILITIES: found}
        for row, mass, entropy in zip(made, distribution.mass, distribution.entropy, strict=True):
            row |= {MASS: self._rounded(mass), ENTROPY: self._rounded(entropy)}
        return made


def digits_of(predictor: NumberPredictor | Answering) -> int:
    """How many digits of what a model computes mean something."""
    return _DIGITS_OF_HALF if predictor.computes_in_half else _DIGITS


def rounded(number: Any, rounding: str = ROUND_HALF_EVEN, *, digits: int) -> float | None:
    """A number with so many digits, rounded in a direction of `decimal`; None for one that is not finite."""
    if not math.isfinite(number):
        return None
    return float(Context(prec=digits, rounding=rounding).create_decimal_from_float(float(number)))


def _shortest(number: np.float32) -> float | None:
    """A float32 with the fewest digits that tell it from all others, as 0.1 and not 0.10000000149011612."""
    return float(str(number)) if math.isfinite(number) else None


def predict_file(
    predictor: NumberPredictor,
    source: str | Path,
    target: str | Path,
    *,
    limit: int | None = None,
    **options: Any,
) -> int:
    """Predict a number for each row of a file, and write the rows with it to another.

    A run that was stopped is continued by the same call: what is in the target already is kept, and each row is there
    once, in the order of the source. What made the rows (weights, grid, settings) is noted beside the target, in
    `NAME.made_by.json`; a target that another model or other settings began, or other rows, is refused. Where there is
    no note, as beside a target of a version before this, rows alone are compared, and a warning says so.

    Args:
        predictor: makes the predictions: a [`RegressionPredictor`], or one of a server.
        source: as [`read_rows`] takes it, with a `prompt` in each row, or the columns of the model's prompt template.
        target: JSON Lines, CSV or TSV. A row holds all that it has in the source, and `prediction`, null (in a table
            empty) where the model gave no number.
        limit: predict the first so many rows of the source alone; a later call without it continues after them.
        options: `batch_size`, `batch_tokens`, `chunk_size` (the rows that are written together), `distribution` (in
            a table a column a number), `interval`, `calibrated`, `show_progress`, `reasons`, `num_reasonings`,
            `temperature`, `max_reasoning_tokens` and `seed`, as in [`predict_rows`].

    Returns:
        How many rows were predicted in this call.

    Raises:
        ValueError: a row or file that cannot be used, a target that was written from other rows or by another model
            or settings, or with `distribution` a method that gives a number alone. What was predicted before is in
            the target.
        OSError: the target cannot be written to, or is being written by another process.
    """
    options["as_columns"] = is_table(Path(target))
    columns = _Columns(
        predictor,
        distribution=options.get("distribution", False),
        as_columns=options["as_columns"],
        interval=options.get("interval"),
        calibrated=options.get("calibrated", False),
        reasons=options.get("reasons", False),
    )
    how: Any = {name: options[name] for name in ReasoningOptions.__optional_keys__ if name in options}
    writer = predictor.writer(**how)
    return append_rows(
        source,
        target,
        partial(predict_rows, predictor, **options),
        check=columns.check,
        made_by=lambda: identity_of(
            predictor, interval=options.get("interval"), calibrated=options.get("calibrated", False), writer=writer
        ),
        limit=limit,
        chosen={PREDICTION, PROBABILITIES, REASONINGS, *columns.of_distribution} - {MASS, ENTROPY},
    )


def append_rows(
    source: str | Path,
    target: str | Path,
    predict: Callable[..., Iterator[list[dict[str, Any]]]],
    *,
    check: Callable[[Mapping[str, Any], int], object],
    made_by: Callable[[], Mapping[str, Any]],
    limit: int | None = None,
    chosen: Set[str] = frozenset(),
    replaced: Set[str] = frozenset(),
) -> int:
    """Write the rows of a file with what is predicted for them to another, after the rows that are there already.

    Args:
        source, target, limit: as in [`predict_file`].
        predict: given rows, and as `first_row` the number of the first of them, gives the rows of each chunk as they
            are written.
        check: raises a ValueError for a row, of a number, that cannot be used.
        made_by: gives what the predictions depend on besides the rows, by names.
        chosen: the columns that options add or leave out. A target that has others of them is not continued.
        replaced: the columns of the source that are written anew. They are not given to `predict`.

    Returns:
        How many rows were predicted in this call.

    Raises:
        ValueError, OSError: as [`predict_file`].
    """
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{str(source)!r} would be overwritten by its own predictions. Write to another file.")
    rows: Iterator[dict[str, Any]] = (
        {name: value for name, value in row.items() if name not in replaced} for row in read_rows(source)
    )
    first = list(itertools.islice(rows, 1))
    # What is wrong with the first row is found before there is a file.
    for row in first:
        check(row, 0)
    rows = itertools.chain(first, rows)
    with RowWriter(target, made_by()) as writer:
        already = writer.rows
        _skip(rows, writer, source)
        if limit is not None:
            rows = itertools.islice(rows, max(limit - already, 0))
        added = None if writer.last is None else chosen & set(writer.last)
        for made in predict(rows, first_row=already):
            if added is not None and added != chosen & set(made[0]):
                raise ValueError(
                    f"{writer.path} was written with other options: its rows have {', '.join(sorted(added))}, and "
                    f"these would have {', '.join(sorted(chosen & set(made[0])))}. Write to another file."
                )
            writer.write(made)
        return writer.rows - already


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
    logger.warning(f"{writer.path} holds {writer.rows} rows already. Prediction continues after them.")
