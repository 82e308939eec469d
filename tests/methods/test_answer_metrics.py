"""Metrics of answers against arithmetic by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raft_peft.methods.answer_metrics import AnsweredQuestions

NONE = -np.inf


def answered():
    """Two rows, each with a score of three levels, a question of yes and no, and a choice of two."""
    probs = [[0.1, 0.2, 0.6], [0.2, 0.6, 0], [0.3, 0.5, 0], [0.5, 0.2, 0.1], [0.5, 0.3, 0], [0.6, 0.2, 0]]
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    return AnsweredQuestions(
        ids=["tone", "spam", "kind"] * 2,
        types=["score", "predicate", "choice"] * 2,
        values=[(0, 1, 2), (0, 1), (0, 1)] * 2,
        log_probs=log_probs,
        shares=np.array([[0, 0.5, 0.5], [0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=float),
        labels=np.array([1.5, 1, np.nan, 0, 0, np.nan]),
    )


def test_of_each_question():
    metrics = answered().metrics()
    first, second = np.array([0.1, 0.2, 0.6]) / 0.9, np.array([0.5, 0.2, 0.1]) / 0.8
    expected = [first @ [0, 1, 2], second @ [0, 1, 2]]
    assert metrics["tone_rmse"] == pytest.approx(np.sqrt(np.mean((np.array(expected) - [1.5, 0]) ** 2)))
    nll = [-(np.log(first[1]) + np.log(first[2])) / 2, -np.log(second[0])]
    assert metrics["tone_nll"] == pytest.approx(np.mean(nll))
    # The target of the first row has an entropy of log 2, that of the second none.
    assert metrics["tone_kl"] == pytest.approx(np.mean(nll) - np.log(2) / 2)
    brier = [((first - [0, 0.5, 0.5]) ** 2).sum(), ((second - [1, 0, 0]) ** 2).sum()]
    assert metrics["tone_brier"] == pytest.approx(np.mean(brier))
    assert metrics["tone_label_mass"] == pytest.approx(0.85)
    # The likeliest level is the third, and the target is shared by the second and the third; then both are the first.
    assert metrics["tone_accuracy"] == 0.5
    assert metrics["spam_auc"] == roc_auc_score([1, 0], [0.75, 0.375])
    assert metrics["kind_accuracy"] == 0.5
    # Answers with a confidence of 0.5 / 0.8 that are wrong, and of 0.6 / 0.8 that are right.
    assert metrics["kind_ece"] == pytest.approx((0.625 + 0.25) / 2)
    assert "kind_rmse" not in metrics


def test_of_types_and_the_mean_over_questions():
    metrics = answered().metrics()
    assert metrics["score_rmse"] == metrics["tone_rmse"]
    of_questions = [metrics[f"{one}_nll"] for one in ("tone", "spam", "kind")]
    assert metrics["macro_nll"] == pytest.approx(np.mean(of_questions))


def test_a_question_that_is_asked_once_is_not_listed():
    whole = answered()
    one = AnsweredQuestions(
        ["a", "b", "c"], whole.types[:3], whole.values[:3], whole.log_probs[:3], whole.shares[:3], whole.labels[:3]
    )
    metrics = one.metrics()
    assert not any(name.startswith(("a_", "b_", "c_")) for name in metrics)
    assert metrics["macro_nll"] == pytest.approx(
        np.mean([metrics[f"{kind}_nll"] for kind in ("score", "predicate", "choice")])
    )


def test_a_target_that_the_model_gives_no_probability_costs_infinity():
    one = AnsweredQuestions(
        ["a"], ["choice"], [(0, 1)], np.array([[0.0, NONE]]), np.array([[0.0, 1.0]]), np.array([np.nan])
    )
    assert one.metrics()["choice_nll"] == np.inf
