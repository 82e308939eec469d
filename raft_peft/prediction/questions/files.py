"""Answers to the questions of a file's rows, appended to another file as they are made."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.form import QuestionForm
from raft_peft.data.questions.question import NUMBER, SCORE, Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.row_files import is_table
from raft_peft.data.rows import each
from raft_peft.messages import warn
from raft_peft.prediction.batching import chunks
from raft_peft.prediction.files import append_rows, digits_of, rounded
from raft_peft.prediction.identity import identity_of_answers
from raft_peft.prediction.questions.answering import Answering

logger = logging.getLogger(__name__)

ANSWERS = "answers"
# The columns of a table: `answer_urgency`, and `answer_urgency_low` for what else there is.
COLUMN = "answer_{id}"


def answer_rows(
    predictor: Answering,
    rows: Iterable[Mapping[str, Any]],
    form: QuestionForm,
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    chunk_size: int = 512,
    distribution: bool = False,
    as_columns: bool = False,
    interval: float | None = None,
    first_row: int = 0,
    show_progress: bool | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Answer the questions of many rows, as they are read.

    Numbers have as many digits as those of [`predict_rows`]. The ends of intervals are rounded outwards.

    Args:
        predictor: gives the answers.
        rows: what `form` reads.
        form: the questions that rows do not bring themselves, and how states are written.
        batch_size, batch_tokens: as in [`RegressionPredictor.decide_rows`].
        chunk_size: the rows that are answered and given together.
        distribution: whether to add the probabilities of the options, and their `label_mass`.
        as_columns: whether each figure is a column of its own, as a table has them.
        interval: the share of targets that intervals or sets of options are to cover, as in `decide_rows`.
        first_row: the number of the first row, for messages.
        show_progress: whether to show a progress bar.

    Yields:
        The rows of each chunk, in their order, with `answers`: for each id an object of `value` (None where a server
        refuses the question), and where they are
        asked for `low` and `high`, or of a choice and of yes and no `options`; `probabilities` and `label_mass`. With
        `as_columns`, the value of the question `urgency` is the column `answer_urgency`, and the others are
        `answer_urgency_low` and so on.

    Raises:
        ValueError: a row that cannot be used. The message names it.
    """
    columns = _Columns(predictor, form, distribution=distribution, as_columns=as_columns, interval=interval)
    count = refused = 0
    with tqdm(unit="row", disable=show_progress is False) as progress:
        for some in chunks(each(rows), chunk_size):
            asked = [columns.check(row, number) for number, row in enumerate(some, first_row)]
            predictor.check_intervals(asked, interval)
            read = predictor.read_questions(
                asked, batch_size, batch_tokens=batch_tokens, first_row=first_row, show_progress=False
            )
            first_row += len(some)
            progress.update(len(some))
            count += sum(len(row.questions) for row in asked)
            refused += sum(len(row.questions) - len(found) for row, found in zip(asked, read, strict=True))
            answers = predictor.answers(read, interval)
            yield [{**row, **columns.of(one, found)} for row, one, found in zip(some, asked, answers, strict=True)]
    if refused:
        warn(logger, f"The server refused {refused} of {count} questions. Their answers are empty.")


def answer_file(
    predictor: Answering,
    source: str | Path,
    target: str | Path,
    form: QuestionForm,
    *,
    limit: int | None = None,
    **options: Any,
) -> int:
    """Answer the questions of a file's rows, and write the rows with their answers to another file.

    A run that was stopped is continued by the same call, as in [`predict_file`]. What made the answers, the questions
    among it, is noted beside the target.

    Args:
        predictor: gives the answers.
        source: as [`read_rows`] takes it.
        target: JSON Lines, CSV or TSV. In a table all rows ask the same questions.
        form: the questions that rows do not bring themselves, and how states are written.
        limit: answer the first so many rows of the source alone; a later call without it continues after them.
        options: those of [`answer_rows`], in which `as_columns` follows from the target.

    Returns:
        How many rows were answered in this call.

    Raises:
        ValueError, OSError: as [`predict_file`].
    """
    options["as_columns"] = is_table(Path(target))
    columns = _Columns(
        predictor,
        form,
        distribution=options.get("distribution", False),
        as_columns=options["as_columns"],
        interval=options.get("interval"),
    )

    def predict(rows: Iterator[Mapping[str, Any]], first_row: int) -> Iterator[list[dict[str, Any]]]:
        return answer_rows(predictor, rows, form, first_row=first_row, **options)

    return append_rows(source, target, predict, check=columns.check, made_by=columns.made_by, limit=limit)


class _Columns:
    """What is added to the rows.

    Args:
        predictor, form, distribution, as_columns, interval: as in [`answer_rows`].
    """

    def __init__(
        self,
        predictor: Answering,
        form: QuestionForm,
        *,
        distribution: bool,
        as_columns: bool,
        interval: float | None,
    ):
        self._predictor, self._form = predictor, form
        self._distribution, self._as_columns, self._interval = distribution, as_columns, interval
        self._rounded = partial(rounded, digits=digits_of(predictor))
        self._first: tuple[str, ...] = ()

    def made_by(self) -> dict[str, Any]:
        """What the answers depend on besides the rows, by names."""
        return identity_of_answers(
            self._predictor, self._form, interval=self._interval, distribution=self._distribution
        )

    def check(self, row: Mapping[str, Any], number: int) -> QuestionRow:
        """A row, read.

        Args:
            row: as it is in its source.
            number: its own, for messages.

        Raises:
            ValueError: it cannot be read, has a column of a name that is added, or is to stand in a table whose first
                row asks other questions.
        """
        asked = self._form.row(row, number, with_targets=False)
        names = self._names(asked)
        for name in names:
            if name in row:
                raise ValueError(f"Row {number} has a column {name!r} already. Rename it.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"Row {number}: the answers to two questions would have one column, {twice!r}. Rename a question, or "
                "write to .jsonl."
            )
        if self._as_columns and set(names) != set(self._first or names):
            raise ValueError(
                f"Row {number} asks other questions than the first, and the rows of a table have the same columns. "
                "Write to .jsonl."
            )
        self._first = self._first or names
        return asked

    def _names(self, row: QuestionRow) -> tuple[str, ...]:
        if not self._as_columns:
            return (ANSWERS,)
        return tuple(_column(one.id, figure) for one in row.questions for figure in self._figure_names(one))

    def _figure_names(self, question: Question) -> tuple[str, ...]:
        ends = ("low", "high") if question.type in (SCORE, NUMBER) else ("options",)
        return (
            "value",
            *(() if self._interval is None else ends),
            *(("probabilities", "label_mass") if self._distribution else ()),
        )

    def of(self, row: QuestionRow, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """The columns of a row's answers.

        Args:
            row: with its questions.
            answers: to these, without those that were refused.
        """
        found = {
            one.id: self._figures(answers[one.id]) if one.id in answers else dict.fromkeys(self._figure_names(one))
            for one in row.questions
        }
        if not self._as_columns:
            return {ANSWERS: found}
        return {_column(name, figure): value for name, figures in found.items() for figure, value in figures.items()}

    def _figures(self, answer: Answer) -> dict[str, Any]:
        value = answer.value
        figures: dict[str, Any] = {"value": value if isinstance(value, str) else self._rounded(value)}
        if answer.low is not None:
            figures["low"] = self._rounded(answer.low, ROUND_FLOOR)
            figures["high"] = self._rounded(answer.high, ROUND_CEILING)
        if answer.options is not None:
            figures["options"] = list(answer.options)
        if self._distribution:
            figures["probabilities"] = {name: self._rounded(one) for name, one in answer.probabilities.items()}
            figures["label_mass"] = self._rounded(answer.label_mass)
        return figures


def _column(question: str, figure: str) -> str:
    """The column of a table that holds a figure of a question's answer."""
    return COLUMN.format(id=question) + ("" if figure == "value" else f"_{figure}")
