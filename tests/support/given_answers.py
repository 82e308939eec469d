"""A predictor whose answers to typed questions are given, for what is made of answers."""

from types import SimpleNamespace

import numpy as np
import torch

from raft_peft.data.questions.answer import Answer
from raft_peft.prediction.questions.answering import ReadQuestion
from raft_peft.prediction.questions.predictor import AnsweringPredictor

TONE_AND_KIND = {
    "tone": {"type": "score", "instructions": "?", "criteria": ["rude", "kind"]},
    "kind": {"type": "choice", "instructions": "?", "criteria": ["letter", "bill", "card"]},
}
# Of each option over the whole vocabulary.
PROBABILITIES = {"tone": [0.1, 0.4], "kind": [0.2, 0.1, 0.1]}


class GivenAnswers(AnsweringPredictor):
    """Answers each question alike, with an interval of half a level and sets of two options."""

    def __init__(self):
        self.model, self._autocast = SimpleNamespace(dtype=torch.float32), None
        self.question_calibration = None
        self.asked = []

    def check_intervals(self, rows, interval):
        if interval == 0.99:
            raise ValueError("99 rows or more")

    def read_questions(self, rows, *_, first_row=0, **__):
        self.asked += [(number, row.state) for number, row in enumerate(rows, first_row)]
        return [
            [ReadQuestion(one, np.log(np.array(PROBABILITIES[one.id], np.float32))) for one in row.questions]
            for row in rows
        ]

    def answers(self, read, interval=None):
        found = [{one.question.id: one.answer() for one in row} for row in read]
        if interval is None:
            return found
        limits = {"tone": {"low": 0.5500001, "high": 1.0}, "kind": {"options": ("letter", "card")}}
        return [{name: Answer(**{**vars(one), **limits[name]}) for name, one in row.items()} for row in found]
