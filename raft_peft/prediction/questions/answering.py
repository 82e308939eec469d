"""`Answering`: what every predictor of answers does with the probabilities that it has read, here or from a server."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.dataset import as_question_rows, is_question_table
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.rows import each
from raft_peft.prediction.questions.calibration import QuestionCalibration

Questions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ReadQuestion:
    """What was read for one question of a row.

    Attributes:
        question: as it was asked.
        log_probs: of its options over the whole vocabulary, of shape (options,).
        knows_mass: whether they are; else they are given the options, as of a server that tells no more.
    """

    question: Question
    log_probs: np.ndarray
    knows_mass: bool = True

    def answer(self) -> Answer:
        """The answer given the options."""
        log_probs = self.log_probs.astype(np.float64)
        probabilities = softmax(log_probs)
        value: float | str = float(probabilities @ np.array(self.question.values))
        if self.question.is_choice:
            value = self.question.names[int(probabilities.argmax())]
        mass = float(np.exp(log_probs).sum()) if self.knows_mass else math.nan
        return Answer(value, dict(zip(self.question.names, probabilities.tolist(), strict=True)), mass)


class Answering(ABC):
    """Answers typed questions by the probabilities of their options."""

    @property
    @abstractmethod
    def questions(self) -> Questions | None:
        """Asked where `decide` is given none, by their ids."""

    @property
    @abstractmethod
    def question_calibration(self) -> QuestionCalibration | None:
        """What held-out rows taught about the answers; None where there is nothing."""

    def decide(
        self, state: Any, questions: Questions | None = None, *, interval: float | None = None
    ) -> dict[str, Answer]:
        """Answer typed questions about one text.

        ```python
        predictor = RegressionPredictor.from_pretrained("my-judge")
        answers = predictor.decide(
            "The parcel came two days late.",
            {"anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "annoyed", "furious"]}},
        )
        answers["anger"].value
        ```

        Args:
            state: a text, JSON, or the messages of a chat.
            questions: by their ids, see [`Question`]. By default those of training.
            interval: the share of targets that the intervals and sets of options are to cover, such as 0.9, after
                `calibrate_questions`; see [`QuestionCalibration`].

        Returns:
            An [`Answer`] for each id; of a server, but for those that it refuses.

        Raises:
            ValueError: a question that cannot be asked, or none; or with `interval` one that is not calibrated in
                these words and for this level.
        """
        (answers,) = self.decide_rows([{"state": state}], questions=questions, interval=interval)
        return answers

    def decide_rows(
        self,
        rows: Iterable[Mapping[str, Any]],
        batch_size: int = 64,
        *,
        questions: Questions | None = None,
        interval: float | None = None,
        batch_tokens: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> list[dict[str, Answer]]:
        """Answer the typed questions of rows. What several prompts begin with is computed once.

        Args:
            rows: each a `state`, and its `questions` where it does not take those of the call. A list, a data frame or
                a dataset.
            batch_size: the most questions in a forward pass.
            questions: asked of each row that brings none, see `decide`.
            interval: as in `decide`.
            batch_tokens: the most tokens in a forward pass, with padding.
            first_row: the number of the first row, for messages.
            show_progress: whether to show a progress bar; by default where there are more questions than a batch has.

        Raises:
            ValueError: as `decide`; the message names the row.
        """
        asked = self._rows(rows, questions, first_row)
        # What cannot be given is refused now, not after hours of prediction.
        self.check_intervals(asked, interval)
        read = self.read_questions(
            asked, batch_size, batch_tokens=batch_tokens, first_row=first_row, show_progress=show_progress
        )
        return self.answers(read, interval)

    def _rows(self, rows: Iterable[Any], questions: Questions | None, first_row: int = 0) -> list[QuestionRow]:
        return question_rows(rows, self.questions if questions is None else questions, first_row)

    @property
    @abstractmethod
    def computes_in_half(self) -> bool:
        """Whether probabilities are computed in 16 bits, so that few of their digits mean something."""

    @abstractmethod
    def read_questions(
        self,
        rows: Sequence[QuestionRow],
        batch_size: int = 64,
        *,
        batch_tokens: int = 4096,
        first_row: int = 0,
        show_progress: bool | None = None,
    ) -> list[list[ReadQuestion]]:
        """The probabilities of the options of each row's questions, in their order. Takes what `decide_rows` does.

        Raises:
            ValueError: a question that cannot be asked. The message names the row.
        """

    @abstractmethod
    def calibrated_questions(self) -> QuestionCalibration:
        """The calibration of questions, where there is one for the way in which they are read.

        Raises:
            ValueError: there is none, or it was made for other settings or weights.
        """

    def check_intervals(self, rows: Sequence[QuestionRow], interval: float | None) -> None:
        """Raise a ValueError where `answers` cannot give the intervals of a level for the questions of some rows.

        Args:
            rows: with their questions.
            interval: as in `decide`; None for no intervals.
        """
        if interval is None:
            return
        calibration = self.calibrated_questions()
        for question in dict.fromkeys(question for row in rows for question in row.questions):
            calibration.of(question).check(interval)

    def answers(
        self, read: Sequence[Sequence[ReadQuestion]], interval: float | None = None
    ) -> list[dict[str, Answer]]:
        """The answers to the questions of rows, by their ids.

        Args:
            read: of each row, as `read_questions` gives it.
            interval: as in `decide`.

        Raises:
            ValueError: as `check_intervals`.
        """
        return answers_of(read, None if interval is None else self.calibrated_questions(), interval)


def answers_of(
    read: Sequence[Sequence[ReadQuestion]], calibration: QuestionCalibration | None, interval: float | None
) -> list[dict[str, Answer]]:
    """See `Answering.answers`.

    Args:
        read, interval: as there.
        calibration: that gives the intervals; None for none.
    """
    found = [{one.question.id: one.answer() for one in row} for row in read]
    if calibration is None or interval is None:
        return found
    alike: dict[Question, list[tuple[int, ReadQuestion]]] = {}
    for number, row in enumerate(read):
        for one in row:
            alike.setdefault(one.question, []).append((number, one))
    for question, those in alike.items():
        limits = calibration.of(question).limits(np.stack([one.log_probs for _, one in those]), interval)
        for (number, _), limit in zip(those, limits, strict=True):
            found[number][question.id] = replace(found[number][question.id], **limit)
    return found


def question_rows(rows: Iterable[Any], questions: Questions | None, first_row: int = 0) -> list[QuestionRow]:
    """Rows as they are read; those that bring no questions with others.

    Args:
        rows: a list, a data frame or a dataset.
        questions: by their ids; None where there are none.
        first_row: the number of the first row, for messages.

    Raises:
        ValueError: rows or questions that cannot be read.
    """
    asked: Any = questions
    if isinstance(questions, Mapping):
        asked = {name: Question.of(name, raw) for name, raw in questions.items()}
    with_questions = (_with_questions(row, asked, number) for number, row in enumerate(each(rows), first_row))
    return list(as_question_rows(with_questions, first_row, from_table=is_question_table(rows)))


def _with_questions(row: Any, asked: Any, number: int) -> Any:
    if isinstance(row, Mapping) and row.get("questions") is None:
        if asked is None:
            raise ValueError(
                f"Row {number} has no `questions`, and none are known from training. Pass `questions={{id: {{'type': "
                "'score', 'instructions': ..., 'criteria': [...]}}}`."
            )
        return {**row, "questions": asked}
    return row
