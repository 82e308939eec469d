import json
import subprocess
import sys

import pytest

from raft_peft.data.questions.question import Question
from raft_peft.grid import NumberGrid

LEVELS = ["rude", "plain", "kind"]


def question(kind="score", criteria=None, **other):
    return Question.of("tone", {"type": kind, "instructions": "How?", "criteria": criteria, **other})


def test_the_options_of_each_type_and_their_values():
    score = question("score", LEVELS)
    assert (score.names, score.values, score.grid) == (("rude", "plain", "kind"), (0.0, 1.0, 2.0), None)
    yes_no = question("noul", {"true": "polite"})
    assert (yes_no.type, yes_no.names, yes_no.values) == ("predicate", ("yes", "no"), (1.0, 0.0))
    assert [option.description for option in yes_no.options] == ["polite", None]
    choice = question("choice", {"billing": "payments", "other": None})
    assert (choice.names, choice.values, choice.is_choice) == (("billing", "other"), (0.0, 1.0), True)
    number = question("number", "0..1..0.5")
    assert (number.names, number.values) == (("0.0", "0.5", "1.0"), (0.0, 0.5, 1.0))


@pytest.mark.parametrize(
    ("kind", "criteria"),
    [
        ("score", LEVELS),
        ("score", [str(n) for n in range(10)]),
        ("predicate", None),
        ("predicate", {"true": "a", "false": "b"}),
        ("choice", ["a", "b"]),
        ("choice", {"a": None, "b": "what it is"}),
        ("number", [1, 2.5, 10]),
        ("number", {"0": "none", "1": "all"}),
    ],
)
def test_json_holds_a_question(kind, criteria):
    made = question(kind, criteria)
    assert Question.of("tone", json.loads(json.dumps(made.as_dict()))) == made


def test_a_grid_with_texts_of_its_own():
    assert question("number", {0: "none", 1: "all"}).grid == NumberGrid({0: "none", 1: "all"})


@pytest.mark.parametrize(
    ("kind", "criteria", "message"),
    [
        ("rating", LEVELS, "its type is 'rating'. Use one of score, predicate, choice, number"),
        (None, LEVELS, "its type is None"),
        ("score", ["only"], "2 to 10 levels, and this one 1"),
        ("score", [str(n) for n in range(11)], r"this one 11. Join some, or ask for a number: .*'0\.\.10'"),
        ("score", ["a", "b", "a"], "the level 'a' stands twice"),
        ("score", {"a": "b"}, "Write a list of its levels"),
        ("score", "abc", "Write a list of its levels"),
        ("score", ["a", " "], "the level ' ' is no text"),
        ("score", ["a", True], "the level True is no text"),
        ("choice", ["a", "a"], "the option 'a' stands twice"),
        ("choice", {1: "x", "1": "y"}, "the option '1' stands twice"),
        ("choice", {"a": None}, "2 to 26 options"),
        ("choice", [str(n) for n in range(27)], "this one 27"),
        ("choice", None, "the criteria of a choice are None"),
        ("predicate", {"yes": "x"}, "'true': '...', 'false': '...'"),
        ("predicate", {"true": 3}, "the description 3"),
        ("number", None, "a number has no criteria"),
        ("number", [3], "may be 3 alone"),
        ("number", [1, 1], "the value 1.0 more than once"),
        ("number", {"a": "b"}, "the key 'a', which is not a number"),
    ],
)
def test_what_is_no_question(kind, criteria, message):
    with pytest.raises(ValueError, match=f"question 'tone': .*{message}"):
        question(kind, criteria)


def test_what_is_around_a_question():
    with pytest.raises(ValueError, match=r"the question id '' is no text"):
        Question.of("", {"type": "noul"})
    with pytest.raises(ValueError, match=r"question 'tone': it is 'How\?'. Write {'type'"):
        Question.of("tone", "How?")
    with pytest.raises(ValueError, match=r"question 'tone': it has the keys \['levels'\], which are not known"):
        question(criteria=LEVELS, levels=3)
    with pytest.raises(ValueError, match=r"question 'tone': its instructions are \['a'\]"):
        question(criteria=LEVELS, instructions=["a"])


def test_questions_load_no_torch():
    code = "import raft_peft.data.questions.template, sys; print({'torch', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
