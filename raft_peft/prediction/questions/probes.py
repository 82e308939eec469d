"""Rows of questions on which an adapter and the model merged from it are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from raft_peft.data.questions.dataset import as_question_rows, is_question_table
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.rows import each
from raft_peft.prediction.questions.answering import Questions
from raft_peft.prediction.questions.predictor import AnsweringPredictor

# Asked where those of training differed from row to row, so that none is saved. One of each type that servers know.
_QUESTIONS = {
    "quality": {"type": "score", "instructions": "How good is it?", "criteria": ["bad", "fair", "good"]},
    "content": {"type": "noul", "instructions": "Is the writer content?"},
    "part": {"type": "choice", "instructions": "What is it about?", "criteria": ["the product", "the delivery"]},
}


def question_probes(states: Sequence[Any], questions: Questions | None, own: Any = None) -> list[QuestionRow]:
    """The rows to compare on.

    Args:
        states: texts to ask about.
        questions: of training; None where none are saved.
        own: rows of the user's in place of the states, as `decide_rows` takes them.

    Raises:
        ValueError: a row of the user's is none.
    """
    asked = _QUESTIONS if questions is None else questions
    if own is None:
        return [QuestionRow.of({"state": state, "questions": asked}) for state in states]
    rows = list(each(own))
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {number} of `prompts` is {row!r:.80}, and the folder was trained on typed questions. Pass rows: "
                "`prompts=[{'state': ..., 'questions': {...}}]`, without `questions` for those of training."
            )
    # As objects, since those of a table lose their keys that are None.
    known = {name: Question.of(name, one) for name, one in asked.items()}
    filled = [row if row.get("questions") is not None else {**row, "questions": known} for row in rows]
    return list(as_question_rows(filled, from_table=is_question_table(own)))


def probabilities(predictor: AnsweringPredictor, rows: Sequence[QuestionRow]) -> np.ndarray:
    """Of all options of all questions one after the other, given the options, float64, of shape (options of all,)."""
    read = predictor.read_questions(rows, show_progress=False)
    return np.concatenate([softmax(one.log_probs.astype(np.float64)) for row in read for one in row])
