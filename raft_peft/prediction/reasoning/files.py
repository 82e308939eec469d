"""Reasonings that a model writes for the rows of a file, to train on them (TRACT's second stage)."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raft_peft.data.labels import LabelColumn, means_of, read_targets, with_number
from raft_peft.data.reasoning.reasonings import REASONING, ScorePrefix, check_reasoning
from raft_peft.data.reasoning.turns import check_turn_stays_open
from raft_peft.data.rows import each
from raft_peft.grid import NumberGrid
from raft_peft.messages import warn
from raft_peft.prediction.files import append_rows, digits_of, rounded
from raft_peft.prediction.identity import identity_of
from raft_peft.prediction.predictor import RegressionPredictor
from raft_peft.prediction.reasoning.columns import NUMBERS
from raft_peft.prediction.reasoning.writer import MAX_REASONING_TOKENS, ReasoningWriter

logger = logging.getLogger(__name__)

# Why a reasoning is left out, as the count of those says it.
_UNFINISHED = "did not end within `max_reasoning_tokens`"
_EMPTY = "are empty"
_TELLS = "hold their score, or the end of the turn, already"
_FAR = "have a number too far from the label"


@dataclass(frozen=True)
class Selection:
    """Which of the written reasonings are kept.

    Attributes:
        tokenizer: the model's.
        grid: the numbers that the model may answer with.
        prefix: the words that lead to the score.
        keep_within: the number behind a reasoning is at most so far from the label; None for any number.
        label_column: the column of the label.
        keep_unfinished: whether a reasoning is kept that did not end by itself.
    """

    tokenizer: Any
    grid: NumberGrid
    prefix: ScorePrefix
    keep_within: float | None = None
    label_column: str = "label"
    keep_unfinished: bool = False

    def __post_init__(self) -> None:
        if self.keep_within is not None and not self.keep_within >= 0:
            raise ValueError(f"`keep_within={self.keep_within}` must be 0 or more, in the unit of the labels.")

    def label(self, row: Mapping[str, Any], number: int) -> float | None:
        """The label of a row where it counts; None where it does not.

        Raises:
            ValueError: it has none that can be used.
        """
        if self.keep_within is None:
            return None
        column = LabelColumn.of(self.label_column)
        (label,) = means_of(read_targets([with_number(row, self.label_column)], self.grid, column, number))
        return label

    def objection(self, text: str, number: float, label: float | None, *, ended: bool) -> str | None:
        """Why a reasoning is left out; None where it is kept."""
        if not ended and not self.keep_unfinished:
            return _UNFINISHED
        if not text.strip():
            return _EMPTY
        try:
            check_reasoning(text, self.prefix, self.grid)
            check_turn_stays_open(text, self.tokenizer)
        except ValueError:
            return _TELLS
        far = label is not None and self.keep_within is not None and not abs(number - label) <= self.keep_within
        return _FAR if far else None


def reason_rows(
    predictor: RegressionPredictor,
    rows: Iterable[Mapping[str, Any]],
    *,
    writer: ReasoningWriter,
    selection: Selection,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    chunk_size: int = 64,
    first_row: int = 0,
    show_progress: bool | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Let a model write reasonings for each of many rows, as they are read.

    Args:
        predictor: the model, and how numbers are read off it.
        rows: as in [`predict_rows`], with labels where the selection looks at them.
        writer: writes the reasonings.
        selection: which of them are kept.
        batch_size, batch_tokens, show_progress: as in [`RegressionPredictor.predict`].
        chunk_size: the rows that are given together.
        first_row: the number of the first row, for messages.

    Yields:
        The rows of each chunk, in their order, with the reasonings that are kept as `reasoning`, and as `numbers` the
        prediction behind each. Both are None where none is kept. Warnings say at the end how many were left out.

    Raises:
        ValueError: a row that cannot be used.
    """
    shown = partial(rounded, digits=digits_of(predictor))
    pending: deque[tuple[Mapping[str, Any], float | None]] = deque()
    left_out: Counter[str] = Counter()
    without = written = count = 0

    def prompts() -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(each(rows), first_row):
            pending.append((row, selection.label(row, number)))
            yield row

    options: Any = {"chunk_size": chunk_size, "first_row": first_row, "show_progress": show_progress}
    reader = predictor.read_reasonings(prompts(), batch_size, batch_tokens=batch_tokens, writer=writer, **options)
    for chunk in reader:
        made = []
        numbers = chunk.reading.predictions.split(chunk.counts)
        for texts, ended, behind in zip(chunk.reasonings, chunk.ended, numbers, strict=True):
            row, label = pending.popleft()
            kept = []
            for text, done, number in zip(texts, ended, behind.tolist(), strict=True):
                objection = selection.objection(text, number, label, ended=done)
                if objection is None:
                    kept.append((text, shown(number)))
                else:
                    left_out[objection] += 1
            written, count, without = written + len(texts), count + 1, without + (not kept)
            columns = {REASONING: [text for text, _ in kept], NUMBERS: [number for _, number in kept]}
            made.append({**row, **(columns if kept else dict.fromkeys(columns))})
        yield made
    _report(left_out, written, without, count)


def _report(left_out: Mapping[str, int], written: int, without: int, rows: int) -> None:
    """Say how many reasonings and rows were lost."""
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        warn(logger, f"{sum(left_out.values())} of the {written} reasonings are left out: {reasons}.")
    if without:
        warn(
            logger,
            f"{without} of the {rows} rows have no reasoning left. Their `{REASONING}` is null, and training on them "
            "reads the number behind the prompt alone. Write more (`num_reasonings`), or leave these rows out.",
        )


def reason_file(
    predictor: RegressionPredictor,
    source: str | Path,
    target: str | Path,
    *,
    num_reasonings: int = 4,
    temperature: float = 1.0,
    max_reasoning_tokens: int = MAX_REASONING_TOKENS,
    seed: int | None = None,
    keep_within: float | None = None,
    label_column: str = "label",
    keep_unfinished: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    **options: Any,
) -> int:
    """Let a model write reasonings for each row of a file, to train on them (TRACT's second stage, ACL 2025).

    The rows of the target are rows to train on as they are: each holds all that it has in the source, its reasonings
    as `reasoning` instead of those that it had, and the prediction behind each as `numbers`. A reasoning that is
    empty, did not end, or holds its score already is left out, since training would refuse it or learn to break off.

    A run that was stopped is continued by the same call, as in [`predict_file`].

    Args:
        predictor: the model, trained on reasonings or not; it must know a `score_prefix`.
        source: as [`predict_file`] takes it.
        target: JSON Lines.
        num_reasonings, temperature, max_reasoning_tokens, seed: as in [`RegressionPredictor.predict`].
        keep_within: keep the reasonings whose number is at most so far from the row's label, in the unit of the
            labels; None to keep them whatever their number is.
        label_column: the column of the label.
        keep_unfinished: keep reasonings that did not end by themselves, too.
        limit: the first so many rows alone; a later call without it continues after them.
        batch_size: the most reasonings that are written at a time.
        options: `batch_tokens`, `chunk_size` and `show_progress`, as in [`reason_rows`].

    Returns:
        How many rows were written in this call.

    Raises:
        ValueError: a row or file that cannot be used, or a target that was written from other rows, by another model
            or with other settings. What was written before is in the target.
        OSError: the target cannot be written to, or is being written by another process.
    """
    check_reason_target(target)
    writer = predictor.writer(
        num_reasonings,
        temperature=temperature,
        max_reasoning_tokens=max_reasoning_tokens,
        seed=seed,
        batch_size=batch_size,
    )
    if writer is None or writer.encoder.score_prefix is None:
        raise ValueError(f"`num_reasonings={num_reasonings}` must be 1 or more.")
    selection = Selection(
        predictor.tokenizer,
        predictor.grid,
        writer.encoder.score_prefix,
        keep_within=keep_within,
        label_column=label_column,
        keep_unfinished=keep_unfinished,
    )

    def check(row: Mapping[str, Any], number: int) -> None:
        if not predictor.prompt_form.has_prompt(row):
            raise ValueError(
                f"Row {number} has the columns {list(row)}, and {predictor.prompt_form.what_is_missing()}. Rename the "
                "column of the text, or set `prompt_template`."
            )
        if NUMBERS in row:
            raise ValueError(f"Row {number} has a column {NUMBERS!r} already. Rename it.")
        selection.label(row, number)

    kept = {"keep_within": keep_within, "keep_unfinished": keep_unfinished}
    return append_rows(
        source,
        target,
        partial(reason_rows, predictor, writer=writer, selection=selection, batch_size=batch_size, **options),
        check=check,
        made_by=lambda: {**identity_of(predictor, writer=writer), **kept},
        limit=limit,
        replaced={REASONING},
    )


def check_reason_target(target: str | Path) -> None:
    """Refuse a file that cannot hold lists of reasonings.

    Raises:
        ValueError: it has another format than JSON Lines.
    """
    if Path(target).suffix != ".jsonl":
        raise ValueError(
            f"{str(target)!r} ends in {Path(target).suffix!r}. A row has a list of reasonings, which training reads "
            "from .jsonl."
        )
