"""From held-out rows to what is learned of each question."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from support.questions import QUESTIONS, question_rows

from raft_peft import GridDistribution
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.questions.target import read_target
from raft_peft.prediction.calibrating.fitting import calibration_of
from raft_peft.prediction.questions.calibrating import calibration_of_answers, rows_to_calibrate_on, shares_of


def learned(rows, kind="constant", seed=0):
    """What rows teach with answers at random, and these: the log-probabilities of each row's questions."""
    rng = np.random.default_rng(seed)
    rows = rows_to_calibrate_on([QuestionRow.of(row) for row in rows])
    read = [
        [log_softmax(rng.normal(size=len(one.options)) * 2).astype(np.float32) - 1 for one in row.questions]
        for row in rows
    ]
    return calibration_of_answers(rows, read, {"weights": "abc"}, kind=kind), rows, read


@pytest.mark.parametrize("kind", ["constant", "adaptive", "quantiles"])
def test_numbers_learn_what_plain_rows_do(kind):
    found, rows, read = learned(question_rows(20), kind)
    assert list(found.questions) == ["anger", "spam", "kind", "price"]
    assert found.settings == {"weights": "abc"}
    log_probs = np.stack([of_row[0] for of_row in read])
    probabilities = np.exp(log_probs) / np.exp(log_probs).sum(1, keepdims=True)
    targets = [row.targets["anger"] for row in rows]
    # Two ratings of every third row, whose mean is 1.5.
    labels = np.array([[0, 1, 1.5][index % 3] for index in range(20)])
    plain = calibration_of(
        probabilities @ [0, 1, 2],
        labels,
        GridDistribution(torch.from_numpy(log_probs), torch.tensor([0.0, 1.0, 2.0])),
        [0, 1, 2],
        {},
        ratings=targets,
        kind=kind,
    )
    own = found.questions["anger"].numbers
    assert own.errors == pytest.approx(plain.errors, abs=1e-6)
    assert own.spreads == pytest.approx(plain.spreads)
    assert own.tails == pytest.approx(plain.tails)
    assert (own.kind, own.low, own.high) == (kind, 0, 2)
    assert own.temperature == found.questions["anger"].temperature == pytest.approx(plain.temperature, rel=1e-3)


def test_options_by_hand():
    found, _, read = learned(question_rows(6))
    probabilities = np.stack([np.exp(of_row[1]) / np.exp(of_row[1]).sum() for of_row in read])
    # Yes where the index is 1 in three, and yes comes first.
    expected = sorted((probabilities[row, 0 if row % 3 == 1 else 1] for row in range(6)), reverse=True)
    assert found.questions["spam"].options.probabilities == pytest.approx(expected, rel=1e-5)
    assert found.questions["spam"].numbers is None
    # So few rows have no sets of level 0.9.
    assert found.questions["spam"].mean_options is None
    # Shares of 0.8 and 0.2 in each of six rows.
    assert sorted(set(np.round(found.questions["kind"].options.shares, 6))) == [0.2, 0.8]
    assert found.questions["kind"].options.rows == 6


def test_shares_of_targets():
    spam, kind = (Question.of(name, QUESTIONS[name]) for name in ("spam", "kind"))
    targets = [read_target(spam, raw) for raw in (True, False, 0.7, [True, True, False, True])]
    assert shares_of(spam, targets) == pytest.approx(np.array([[1, 0], [0, 1], [0.7, 0.3], [0.75, 0.25]]))
    targets = [read_target(kind, raw) for raw in ("bill", {"letter": 0.9, "bill": 0.1})]
    assert shares_of(kind, targets) == pytest.approx(np.array([[0, 1], [0.9, 0.1]]))


def test_rows_without_a_target_do_not_count(caplog):
    rows = question_rows(12)
    rows[3]["targets"] = {"spam": None}
    rows.append({"state": "no target", "questions": QUESTIONS})
    found, *_ = learned(rows)
    # The number has a target in every other row, of which one was taken.
    assert {name: one.rows for name, one in found.questions.items()} == {
        "anger": 11,
        "spam": 11,
        "kind": 11,
        "price": 5,
    }
    assert "question 'price' has 5 held-out targets, enough for intervals of level 0.833 at most" in caplog.text
    assert "'anger'" not in caplog.text
    with pytest.raises(ValueError, match=r"None of the 2 rows has a target.*Fill `targets`"):
        rows_to_calibrate_on([QuestionRow.of({"state": "a", "questions": QUESTIONS})] * 2)


def test_a_question_in_several_words_is_left_out(caplog):
    rows = question_rows(8)
    other = {**QUESTIONS["anger"], "instructions": "How cross is it?"}
    rows[5] = {**rows[5], "questions": {**QUESTIONS, "anger": other}}
    found, *_ = learned(rows)
    assert list(found.questions) == ["spam", "kind", "price"]
    assert "these rows ask 'anger' in 2 ways. They are not calibrated. Give each wording an id" in caplog.text
    # A row that asks it without a target does not count.
    rows[5] = {**rows[5], "targets": {"spam": True}}
    assert "anger" in learned(rows)[0].questions
    alone = [
        {"state": "a", "questions": {"anger": asked}, "targets": {"anger": 1}} for asked in (other, QUESTIONS["anger"])
    ]
    with pytest.raises(ValueError, match=r"ask 'anger' in 2 ways\. So no question can be calibrated\."):
        learned(alone)


def test_answers_that_are_no_probabilities():
    rows = rows_to_calibrate_on([QuestionRow.of(row) for row in question_rows(2)])
    read = [[np.full(len(one.options), np.nan, np.float32) for one in row.questions] for row in rows]
    with pytest.raises(ValueError, match=r"question 'anger' have no finite probabilities in 2 of 2 rows"):
        calibration_of_answers(rows, read, {}, kind="constant")
