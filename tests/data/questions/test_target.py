import json

import numpy as np
import pytest

from raft_peft.data.questions.question import Question
from raft_peft.data.questions.target import read_target, target_as_dict
from raft_peft.data.ratings import Ratings

SCORE = Question.of("tone", {"type": "score", "criteria": ["rude", "plain", "kind"]})
DIGITS = Question.of("stars", {"type": "score", "criteria": ["1", "2", "3"]})
YES_NO = Question.of("spam", {"type": "noul"})
CHOICE = Question.of("team", {"type": "choice", "criteria": ["billing", "sales", "other"]})
NUMBER = Question.of("days", {"type": "number", "criteria": [0, 10, 20]})


@pytest.mark.parametrize(
    ("question", "raw", "values", "shares"),
    [
        (SCORE, 1, [1], [1]),
        (SCORE, 0.25, [0.25], [1]),
        (SCORE, "kind", [2], [1]),
        (SCORE, [0, 1, 1, "kind"], [0, 1, 2], [0.25, 0.5, 0.25]),
        (SCORE, {"rude": 0.5, "kind": 0.5}, [0, 2], [0.5, 0.5]),
        (SCORE, {"0": 0.5, "1.5": 0.5}, [0, 1.5], [0.5, 0.5]),
        (SCORE, {"plain": 1.0, "kind": None}, [1], [1]),
        # A key that is a text is a name where it may be one, and a number is a place.
        (DIGITS, {"1": 0.5, "2": 0.5}, [0, 1], [0.5, 0.5]),
        (DIGITS, {1: 0.5, 2: 0.5}, [1, 2], [0.5, 0.5]),
        (DIGITS, "3", [2], [1]),
        (YES_NO, True, [1], [1]),
        (YES_NO, np.bool_(False), [0], [1]),
        (YES_NO, 0.7, [0.7], [1]),
        (YES_NO, "no", [0], [1]),
        (YES_NO, [True, True, False, 0.5], [0, 0.5, 1], [0.25, 0.25, 0.5]),
        (YES_NO, {"true": 0.2, "false": 0.8}, [0, 1], [0.8, 0.2]),
        (CHOICE, "other", [2], [1]),
        (CHOICE, ["billing", "other", "other", "other"], [0, 2], [0.25, 0.75]),
        (CHOICE, {"billing": 0.9, "sales": 0.1}, [0, 1], [0.9, 0.1]),
        (NUMBER, 7, [7], [1]),
        (NUMBER, np.float32(3.8), [3.8], [1]),
        (NUMBER, [0, 20], [0, 20], [0.5, 0.5]),
        (NUMBER, {"5": 1.0}, [5], [1]),
    ],
)
def test_targets(question, raw, values, shares):
    target = read_target(question, raw)
    assert target.values == pytest.approx(values)
    assert target.shares == pytest.approx(shares)
    assert read_target(question, json.loads(json.dumps(target_as_dict(target)))) == target


def test_the_number_of_raters_is_kept():
    assert read_target(SCORE, [0, 1, 1]).count == 3
    assert read_target(SCORE, {"rude": 1.0}).count is None
    assert read_target(SCORE, Ratings((1.0,), (1.0,))) == Ratings((1.0,), (1.0,))


@pytest.mark.parametrize(
    ("question", "raw", "message"),
    [
        (SCORE, 3, "the target 3 is outside: its values are from 0 to 2. Levels are counted from 0"),
        (SCORE, -0.1, "the target -0.1 is outside"),
        (SCORE, [1, 5], "the target 5 is outside"),
        (SCORE, {"7": 1.0}, "the target 7 is outside"),
        (SCORE, "nice", "the target 'nice' is not one of 'rude', 'plain', 'kind'"),
        (SCORE, {"rude": 0.5, "nice": 0.5}, "the target 'nice' is not one of"),
        (SCORE, True, "the target is True, and the question is no predicate"),
        (SCORE, float("nan"), "the target is nan"),
        (SCORE, {"rude": 0.5, "kind": 0.4}, "sum to 0.9 and not to 1"),
        (SCORE, {"rude": -0.5, "kind": 1.5}, "the share -0.5"),
        (SCORE, [], "empty list"),
        (SCORE, {}, "empty mapping"),
        (SCORE, object(), "is not a number. Write a number from 0 to 2, or a level"),
        (YES_NO, 1.5, "the target 1.5 is outside: a probability is from 0 to 1"),
        (YES_NO, "maybe", "the target 'maybe' is not one of 'yes', 'no', 'true', 'false'"),
        (CHOICE, 1, "the target 1 is no option"),
        (CHOICE, "legal", "the target 'legal' is not one of 'billing'"),
        (CHOICE, {"0": 1.0}, "the target '0' is not one of"),
        (NUMBER, 21, "the target 21 is outside: its values are from 0 to 20"),
        (NUMBER, "many", "the target 'many' is not one of '0', '10', '20'"),
        (NUMBER, {"values": [21.0], "shares": [1.0], "count": None}, "the target 21 is outside"),
    ],
)
def test_what_is_no_target(question, raw, message):
    with pytest.raises(ValueError, match=message):
        read_target(question, raw)
