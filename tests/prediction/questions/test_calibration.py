"""The saved object: intervals and sets by hand, words that differ, and files that are none."""

import json

import numpy as np
import pytest
from support.questions import QUESTIONS

from raft_peft.data.questions.answer import Answer
from raft_peft.data.questions.question import Question
from raft_peft.prediction.calibrating.calibration import Calibration
from raft_peft.prediction.calibrating.intervals.option_sets import TrueOptions
from raft_peft.prediction.questions.calibration import CalibratedQuestion, QuestionCalibration

ASKED = {name: Question.of(name, raw) for name, raw in QUESTIONS.items()}
NUMBERS = Calibration((0.1, 0.2, 0.3, 0.6), 0, 2, 2.0, {}, spreads=(0.1, 0.2, 0.3, 0.2))
OPTIONS = TrueOptions((0.9, 0.7, 0.5, 0.3), (1, 1, 1, 1), 4)
FOUND = QuestionCalibration(
    {
        "anger": CalibratedQuestion(ASKED["anger"], 2.0, numbers=NUMBERS),
        "kind": CalibratedQuestion(ASKED["kind"], 0.5, options=OPTIONS, mean_options=1.5),
    },
    {"max_length": None, "weights": "abc"},
)


def test_intervals_and_sets_by_hand():
    # Labels take 0.01 of the vocabulary's probability, which does not matter.
    log_probs = np.log(np.array([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]], np.float32) * 0.01 + 1e-30)
    # Rank 4 of 5 places at 0.8 is the error 0.6; the expected levels are 1.1 and 1.9.
    first, second = FOUND.questions["anger"].limits(log_probs, 0.8)
    assert first == {"low": pytest.approx(0.5), "high": pytest.approx(1.7)}
    assert second == {"low": pytest.approx(1.3), "high": 2}
    # Rank 3 at 0.6 is the probability 0.5.
    log_probs = np.log(np.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]], np.float32))
    sets = FOUND.questions["kind"].limits(log_probs, 0.6)
    assert sets == [{"options": ("letter",)}, {"options": ("letter", "bill")}, {"options": ("bill",)}]
    for one in FOUND.questions.values():
        with pytest.raises(ValueError, match=rf"4 held-out rows of the question '{one.question.id}' .* on 9 rows"):
            one.check(0.9)


def test_probabilities_at_the_temperature():
    # At 0.5 probabilities are squared: 0.36 and 0.16 of 0.52.
    answer = Answer("letter", {"letter": 0.6, "bill": 0.4}, 0.1)
    tempered = FOUND.questions["kind"].tempered(answer)
    assert tempered == {"letter": pytest.approx(0.36 / 0.52), "bill": pytest.approx(0.16 / 0.52)}
    assert FOUND.questions["kind"].tempered(Answer("bill", {"letter": 0.0, "bill": 1.0}, 1)) == {
        "letter": 0,
        "bill": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instructions": "How cross is it?"}, r"with the instructions 'How angry is it\?', not 'How cross is it\?'"),
        ({"criteria": ["calm", "furious", "annoyed"]}, r"with the criteria \['calm', 'annoyed', 'furious'\], not"),
        ({"type": "number", "criteria": [0, 1, 2]}, "with the type 'score', not 'number'"),
    ],
)
def test_other_words_have_no_intervals(change, message):
    assert FOUND.of(Question.of("anger", dict(QUESTIONS["anger"]))) is FOUND.questions["anger"]
    with pytest.raises(ValueError, match=f"'anger' was calibrated in other words.*{message}.*calibrate_questions"):
        FOUND.of(Question.of("anger", {**QUESTIONS["anger"], **change}))


def test_the_order_of_options_is_part_of_the_words():
    turned = {**QUESTIONS["kind"], "criteria": ["bill", "letter"]}
    with pytest.raises(ValueError, match="'kind' was calibrated in other words"):
        FOUND.of(Question.of("kind", turned))


def test_other_questions_have_no_intervals():
    with pytest.raises(ValueError, match=r"'price' is not calibrated, as 'anger', 'kind' are"):
        FOUND.of(ASKED["price"])


def test_saved_and_found(tmp_path):
    assert QuestionCalibration.find(str(tmp_path), {}) is None
    FOUND.save(tmp_path)
    assert QuestionCalibration.find(str(tmp_path), {}) == FOUND
    asked = json.loads((tmp_path / "question_calibration.json").read_text())["questions"]["anger"]["question"]
    assert asked == QUESTIONS["anger"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": 3}, "lacks questions or settings"),
        ({"questions": []}, "lacks questions or settings"),
        ({"questions": {"a": 3}}, "question 'a': it is None"),
        ({"temperature": 0}, "of the question 'kind', its temperature 0 is not a finite number above 0"),
        ({"temperature": None}, "of the question 'kind', it lacks a temperature"),
        ({"mean_options": True}, "its mean_options True is not"),
        ({"options": None}, "of the question 'kind', its probabilities are not a list"),
        ({"question": QUESTIONS["anger"]}, "of the question 'kind', it is NoneType, and not an object"),
    ],
)
def test_files_that_are_none(tmp_path, change, message):
    FOUND.save(tmp_path)
    path = tmp_path / "question_calibration.json"
    read = json.loads(path.read_text())
    if set(change) <= set(read):
        read |= change
    else:
        read["questions"]["kind"] |= change
    path.write_text(json.dumps(read))
    with pytest.raises(ValueError, match=rf"not a usable calibration: .*{message}.*calibrate again"):
        QuestionCalibration.find(str(tmp_path), {})


def test_what_is_printed():
    assert str(FOUND) == (
        "anger (score, 4 rows): targets lie within 0.3 (50%), 0.6 (80%) of the answer. Temperature 2.\n"
        "kind (choice, 4 rows): the options of targets have a probability of at least 0.5 (50%), 0.3 (80%); sets of "
        "90% have 1.5 of 2 options. Temperature 0.5."
    )
    numbers = Calibration((0.1, 0.2), 0, 2, 2.0, {}, spreads=(0.1, 0.1), tails=(0.4, 0.2), kind="adaptive")
    shown = str(QuestionCalibration({"anger": CalibratedQuestion(ASKED["anger"], 2.0, numbers)}, {}))
    assert shown == (
        "anger (score, 2 rows): targets lie within 2 s (50%) of the answer. Temperature 2.\n"
        "s is about the standard deviation of a row's own distribution."
    )
