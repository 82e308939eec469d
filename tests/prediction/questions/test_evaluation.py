"""Evaluations of typed questions, checked by hand on answers that are given."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.given_answers import TONE_AND_KIND, GivenAnswers

from raft_peft.data.questions.row import QuestionRow
from raft_peft.prediction.questions.evaluation import evaluate_question_rows


def rows(*targets):
    return [QuestionRow.of({"state": "a", "questions": TONE_AND_KIND, "targets": one}) for one in targets]


def test_by_hand(tmp_path):
    found = evaluate_question_rows(
        GivenAnswers(),
        rows({"tone": 1, "kind": "letter"}, {"tone": 0}, {"kind": {"bill": 0.5, "card": 0.5}}),
        interval=0.8,
    )
    metrics = found.metrics
    assert (found.rows, len(found.asked.ids), metrics["interval"]) == (3, 4, 0.8)
    # The answers are 0.8, and 1/2, 1/4, 1/4; their labels have a probability of 0.5 and 0.4.
    assert metrics["tone_rmse"] == pytest.approx(np.sqrt((0.2**2 + 0.8**2) / 2))
    assert metrics["tone_nll"] == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    assert metrics["kind_nll"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert metrics["kind_label_mass"] == pytest.approx(0.4)
    assert metrics["macro_nll"] == pytest.approx((metrics["tone_nll"] + metrics["kind_nll"]) / 2)
    # 1 is inside and 0 is not; the letter is in the set, and of the second target half.
    assert (metrics["tone_coverage"], metrics["tone_mean_width"]) == (0.5, pytest.approx(0.45, abs=1e-5))
    assert (metrics["kind_coverage"], metrics["kind_mean_options"]) == (0.75, 2)
    (truth, answers) = found.expected()["tone"]
    assert list(found.expected()) == ["tone"]
    assert truth.tolist() == [1, 0] and answers.tolist() == pytest.approx([0.8, 0.8])
    found.save(tmp_path / "metrics.json")
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["rows"] == 3 and saved["tone_pearson"] is None  # all answers are alike


def test_what_a_server_refuses_is_counted_and_left_out(tmp_path):
    class Refuses(GivenAnswers):
        def read_questions(self, rows, *options, **named):
            first, *others = super().read_questions(rows, *options, **named)
            return [[replace(one, knows_mass=False) for one in first][:keeps], *others]

    keeps, those = 1, rows({"tone": 1, "kind": "letter"}, {"tone": 0}, {"kind": "bill"})
    found = evaluate_question_rows(Refuses(), those)
    assert (found.refused, found.asked.ids) == (1, ["tone", "tone", "kind"])
    assert found.metrics["tone_rmse"] == pytest.approx(np.sqrt((0.2**2 + 0.8**2) / 2))
    # One answer comes without its mass.
    assert not any("label_mass" in name for name in found.metrics) and "label_mass" not in found.by_question["tone"]
    found.save(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["refused"] == 1
    keeps = 0
    with pytest.raises(ValueError, match="The server refused all 2 questions"):
        evaluate_question_rows(Refuses(), those[:1])


def test_rows_without_targets():
    with pytest.raises(ValueError, match="There are no rows with targets"):
        evaluate_question_rows(GivenAnswers(), [])
    with pytest.raises(ValueError, match=r"row 1: no question of 'tone', 'kind' has a target. Targets are in"):
        evaluate_question_rows(GivenAnswers(), rows({"tone": 1, "kind": "bill"}, {}))
    with pytest.raises(ValueError, match="No row has a target for the question 'kind'"):
        evaluate_question_rows(GivenAnswers(), rows({"tone": 1}))
    assert "interval" not in evaluate_question_rows(GivenAnswers(), rows({"tone": 1, "kind": "bill"})).metrics
