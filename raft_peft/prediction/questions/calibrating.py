"""From held-out rows of typed questions to a calibration of each question."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from raft_peft.data.questions.question import NUMBER, SCORE, Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.ratings import Ratings, padded_ratings
from raft_peft.distribution import GridDistribution
from raft_peft.losses.label_shares import mean_two_hot
from raft_peft.messages import warn
from raft_peft.metrics import set_metrics
from raft_peft.prediction.calibrating.calibration import USUAL_LEVEL
from raft_peft.prediction.calibrating.fitting import calibration_of
from raft_peft.prediction.calibrating.intervals.option_sets import TrueOptions
from raft_peft.prediction.calibrating.temperature import fitted_temperature
from raft_peft.prediction.questions.calibration import CalibratedQuestion, QuestionCalibration

logger = logging.getLogger(__name__)


def rows_to_calibrate_on(rows: Sequence[QuestionRow]) -> list[QuestionRow]:
    """The rows with the questions that are calibrated: those that have a target and are asked alike in all rows.

    A question that is asked in other words elsewhere is left out, with a warning. A row without any question that is
    left is none.

    Raises:
        ValueError: no question is left.
    """
    words: defaultdict[str, set[Question]] = defaultdict(set)
    for row in rows:
        for question in row.questions:
            if question.id in row.targets:
                words[question.id].add(question)
    if not words:
        raise ValueError(
            f"None of the {len(rows)} rows has a target, so there is nothing to calibrate on. Fill `targets` with the "
            "answers to the questions, by their ids."
        )
    several = {name: len(found) for name, found in words.items() if len(found) > 1}
    if several:
        shown = ", ".join(f"{name!r} in {count} ways" for name, count in list(several.items())[:5])
        what = (
            f"Intervals hold for a question in the same words, and these rows ask {shown}"
            f"{f', and {len(several) - 5} more so' if len(several) > 5 else ''}"
        )
        cure = "Give each wording an id of its own, with enough rows, or the same words to all rows."
        if len(several) == len(words):
            raise ValueError(f"{what}. So no question can be calibrated. {cure}")
        warn(logger, f"{what}. They are not calibrated. {cure}")
    kept = [
        replace(row, questions=tuple(one for one in row.questions if one.id in row.targets and one.id not in several))
        for row in rows
    ]
    return [row for row in kept if row.questions]


def calibration_of_answers(
    rows: Sequence[QuestionRow], log_probs: Sequence[Sequence[np.ndarray]], settings: Mapping[str, Any], *, kind: str
) -> QuestionCalibration:
    """The calibration that held-out rows give.

    Args:
        rows: as `rows_to_calibrate_on` gives them.
        log_probs: of the options of each question of each row, in nats, of shape (options,).
        settings: how these were read off the model.
        kind: of the intervals: constant, adaptive or quantiles.

    Raises:
        ValueError: the model gave no probabilities. The message names the question.
    """
    asked: dict[str, Question] = {}
    targets: defaultdict[str, list[Ratings]] = defaultdict(list)
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for row, of_row in zip(rows, log_probs, strict=True):
        for question, of_options in zip(row.questions, of_row, strict=True):
            asked[question.id] = question
            targets[question.id].append(row.targets[question.id])
            found[question.id].append(of_options)
    calibrated = {
        name: _calibrated(question, np.stack(found[name]), targets[name], kind) for name, question in asked.items()
    }
    for one in calibrated.values():
        if (one.rows + 1) * (1 - USUAL_LEVEL) < 1 - 1e-9:
            warn(
                logger,
                f"The question {one.question.id!r} has {one.rows} held-out target{'s' * (one.rows != 1)}, enough for "
                f"intervals of level {one.rows / (one.rows + 1):.3g} at most. Calibrate on more of them.",
            )
    return QuestionCalibration(calibrated, dict(settings))


def _calibrated(question: Question, log_probs: np.ndarray, targets: list[Ratings], kind: str) -> CalibratedQuestion:
    """What the held-out rows of one question teach.

    Args:
        question: as all rows ask it.
        log_probs: of its options, of shape (rows, options).
        targets: of the rows.
        kind: of the intervals.
    """
    probabilities = softmax(log_probs.astype(np.float64), axis=1)
    without = int((~np.isfinite(probabilities)).any(1).sum())
    if without:
        raise ValueError(
            f"The options of the question {question.id!r} have no finite probabilities in {without} of {len(targets)} "
            "rows. Look whether the training of the model diverged."
        )
    distribution = GridDistribution(torch.from_numpy(log_probs), torch.tensor(question.values))
    if question.type in (SCORE, NUMBER):
        numbers = calibration_of(
            probabilities @ np.array(question.values),
            np.array([target.mean for target in targets]),
            distribution,
            question.values,
            {},
            ratings=targets,
            kind=kind,
        )
        assert numbers.temperature is not None
        return CalibratedQuestion(question, numbers.temperature, numbers)
    shares = shares_of(question, targets)
    options = TrueOptions.of(probabilities, shares)
    try:
        usual = set_metrics(options.sets(probabilities, USUAL_LEVEL), shares)["mean_options"]
    except ValueError:
        # So few rows have no sets of this level.
        usual = None
    temperature = fitted_temperature(distribution, torch.from_numpy(shares))
    return CalibratedQuestion(question, temperature, options=options, mean_options=usual)


def shares_of(question: Question, targets: Sequence[Ratings]) -> np.ndarray:
    """Targets as shares of a question's options, which sum to 1, float64, of shape (rows, options).

    Of a question of yes and no, a probability of yes is a share of yes, and the rest one of no.
    """
    ratings = padded_ratings([target.values for target in targets], [target.shares for target in targets])
    shares = mean_two_hot(*ratings, torch.tensor(question.values)).double().numpy()
    return shares / shares.sum(1, keepdims=True)
