"""Rows of typed questions with targets, answered and compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from raft_peft.data.prompts import rows_error
from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.question import NUMBER, SCORE
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.ratings import Ratings, rating_tensors
from raft_peft.losses.label_shares import mean_two_hot
from raft_peft.methods.answer_metrics import AnsweredQuestions
from raft_peft.metrics import interval_metrics, set_metrics
from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL
from raft_peft.prediction.questions.answering import Answering, ReadQuestion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionEvaluation:
    """What a model answers to questions whose targets are known.

    Attributes:
        rows: how many rows asked them.
        asked: the questions one below the other.
        by_question: the metrics of each question that is asked in several rows, by its id.
        by_type: those of each type.
        metrics: all of these in one, by the names of [`AnsweredQuestions.metrics`], and where there is a calibration
            the level as `interval`.
        refused: how many questions a server did not answer. The metrics are those of the others.
    """

    rows: int
    asked: AnsweredQuestions
    by_question: Mapping[str, Mapping[str, float]]
    by_type: Mapping[str, Mapping[str, float]]
    metrics: Mapping[str, float]
    refused: int = 0

    def expected(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each question that is answered by a number, by its id: the targets and the answers, of shape (rows,)."""
        found = {}
        for name in dict.fromkeys(self.asked.ids):
            own = self.asked.those(self.asked.ids, name)
            if own.types[0] in (SCORE, NUMBER):
                found[name] = (own.labels, own.expected())
        return found

    def save(self, path: str | Path) -> None:
        """Write the metrics as JSON, null for those that are undefined."""
        refused = {"refused": self.refused} if self.refused else {}
        metrics = {name: value if np.isfinite(value) else None for name, value in self.metrics.items()}
        text = json.dumps({"rows": self.rows, **refused, **metrics}, indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def evaluate_question_rows(
    predictor: Answering,
    rows: Sequence[QuestionRow],
    *,
    batch_size: int = 64,
    batch_tokens: int = 4096,
    interval: float | None = None,
    show_progress: bool | None = None,
) -> QuestionEvaluation:
    """Answer the questions of rows that have a target, and compare.

    Where the predictor is calibrated for these questions, the metrics tell how well its intervals and sets of options
    hold: `coverage`, and `mean_width` or `mean_options`.

    Args:
        predictor: gives the answers.
        rows: with targets, as [`QuestionForm.rows`] reads them.
        batch_size, batch_tokens, show_progress: as in [`RegressionPredictor.decide_rows`].
        interval: the level of the intervals, such as 0.9. None for 0.9 where there is a calibration that can give it,
            and for no intervals where there is none.

    Raises:
        ValueError: as `check_targets`, or as `decide_rows`.
    """
    check_targets(rows)
    level = _usual_level(predictor, rows) if interval is None else interval
    with_target = [
        replace(row, questions=tuple(one for one in row.questions if one.id in row.targets)) for row in rows
    ]
    predictor.check_intervals(with_target, level)
    read = predictor.read_questions(with_target, batch_size, batch_tokens=batch_tokens, show_progress=show_progress)
    answers = predictor.answers(read, level)
    found = [one for of_row in answers for one in of_row.values()]
    with_answer = _with_targets(with_target, read)
    refused = sum(len(row.questions) for row in with_target) - len(with_answer)
    if not with_answer:
        raise ValueError(f"The server refused all {refused} questions, so there is nothing to evaluate.")
    asked = _answered(*zip(*with_answer, strict=True))
    by_question, by_type, metrics = asked.by_question(), asked.by_type(), asked.metrics()
    if not all(one.knows_mass for one, _ in with_answer):
        for own in (*by_question.values(), *by_type.values()):
            del own["label_mass"]
        metrics = {name: value for name, value in metrics.items() if not name.endswith("_label_mass")}
    if level is not None:
        metrics = {"interval": level, **metrics}
        for named, names in ((by_question, asked.ids), (by_type, asked.types)):
            for name, own in named.items():
                places = [place for place, one in enumerate(names) if one == name]
                own |= _coverage([found[place] for place in places], asked, places)
                metrics |= {f"{name}_{metric}": value for metric, value in own.items()}
    return QuestionEvaluation(len(rows), asked, by_question, by_type, metrics, refused)


def check_targets(rows: Sequence[QuestionRow]) -> None:
    """Refuse rows that cannot be evaluated or calibrated on.

    Raises:
        ValueError: there are no rows, a row has no target, or a question has none in any row. The message names them.
    """
    if not rows:
        raise ValueError("There are no rows with targets.")
    errors = [
        (number, f"no question of {', '.join(repr(one.id) for one in row.questions)} has a target. {_WHERE}")
        for number, row in enumerate(rows)
        if not row.targets
    ]
    if errors:
        raise rows_error(errors)
    known = {name for row in rows for name in row.targets}
    never = next((one.id for row in rows for one in row.questions if one.id not in known), None)
    if never is not None:
        raise ValueError(f"No row has a target for the question {never!r}. {_WHERE} Or leave the question out.")


_WHERE = "Targets are in `targets`, {id: target}, or in columns with the ids of the questions."


def _with_targets(
    rows: Sequence[QuestionRow], read: Sequence[Sequence[ReadQuestion]]
) -> list[tuple[ReadQuestion, Ratings]]:
    """What was read for each question that has an answer, and its target."""
    return [(one, row.targets[one.question.id]) for row, of_row in zip(rows, read, strict=True) for one in of_row]


def _answered(read: Sequence[ReadQuestion], targets: Sequence[Ratings]) -> AnsweredQuestions:
    """The questions one below the other, with as many places for options as the one of the most."""
    shape = (len(read), max(len(one.log_probs) for one in read))
    log_probs, shares = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)
    for place, (one, target) in enumerate(zip(read, targets, strict=True)):
        options = slice(len(one.log_probs))
        log_probs[place, options] = one.log_probs
        ratings = rating_tensors([target.mean], [target])
        shares[place, options] = mean_two_hot(*ratings, torch.tensor(one.question.values))[0].numpy()
    return AnsweredQuestions(
        ids=[one.question.id for one in read],
        types=[one.question.type for one in read],
        values=[tuple(one.question.values) for one in read],
        log_probs=log_probs,
        shares=shares,
        labels=np.array([one.mean for one in targets]),
    )


def _coverage(answers: Sequence[Answer], asked: AnsweredQuestions, places: Sequence[int]) -> dict[str, float]:
    """How well the intervals or sets of options of questions of one type hold."""
    if all(one.low is not None for one in answers):
        low, high = ([getattr(one, end) for one in answers] for end in ("low", "high"))
        return interval_metrics(low, high, asked.labels[places])
    if any(one.options is None for one in answers):
        return {}
    sets = np.zeros((len(answers), asked.shares.shape[1]), dtype=bool)
    for inside, one in zip(sets, answers, strict=True):
        inside[: len(one.probabilities)] = [name in (one.options or ()) for name in one.probabilities]
    return set_metrics(sets, asked.shares[places])


def _usual_level(predictor: Answering, rows: Sequence[QuestionRow]) -> float | None:
    """The usual level where there is a calibration that can give it; else None, with a warning where there is one."""
    if predictor.question_calibration is None:
        return None
    try:
        predictor.check_intervals(rows, USUAL_LEVEL)
    except ValueError as error:
        logger.warning(f"The intervals are left out. {error}")
        return None
    return USUAL_LEVEL
