"""An evaluation of questions: from what was read of the rows to metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raft_peft.methods.answer_metrics import AnsweredQuestions
from raft_peft.training.questions.reading import AnswersRead


def metrics_of(read: AnswersRead, labels: np.ndarray, questions: Mapping[int, tuple[str, str]]) -> dict[str, float]:
    """The metrics of an evaluation's questions, by name.

    Args:
        read: of all rows, see [`AnswersRead`].
        labels: the means of the targets, of shape (rows, questions).
        questions: the id and the type of each question, by the number of the id.
    """
    return {"loss": float(_of_questions(read["losses"], read).mean()), **answered(read, labels, questions).metrics()}


def answered(read: AnswersRead, labels: np.ndarray, questions: Mapping[int, tuple[str, str]]) -> AnsweredQuestions:
    """The questions of an evaluation one below the other. Takes what `metrics_of` does."""
    numbers = _of_questions(read["question"], read).tolist()
    values = [tuple(row[np.isfinite(row)].tolist()) for row in _of_questions(read["option_values"], read)]
    return AnsweredQuestions(
        ids=[questions[number][0] for number in numbers],
        types=[questions[number][1] for number in numbers],
        values=values,
        log_probs=_of_questions(read["log_probs"], read),
        shares=_of_questions(read["shares"], read),
        labels=_of_questions(labels, read),
    )


def _of_questions(values: np.ndarray, read: AnswersRead) -> np.ndarray:
    """Of shape (questions,) or (questions, options), without the places of rows that have fewer questions."""
    # Rows are filled up with -1 here, and with -100 by `Trainer` where batches differ.
    return values[read["question"] >= 0]
