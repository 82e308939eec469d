"""What the page finds: the numbers of Python, with those of the base model beside them."""

import asyncio
from copy import copy
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from support.serving import TICKETS

from raft_peft import RegressionPredictor
from raft_peft.data.prompt_form import PromptForm
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.grid import NumberGrid
from raft_peft.serving.computing import Computer
from raft_peft.serving.errors import RequestError
from raft_peft.serving.limits import Limits
from raft_peft.serving.models import ServedModels, open_models
from raft_peft.serving.page.asking import Asked, ask, prompt_of
from raft_peft.serving.page.form import usual_level
from raft_peft.serving.scheduler import Scheduler
from raft_peft.serving.telemetry import Telemetry

PROMPT, STATE = "Review: not bad. Stars:", "I was charged twice. Please refund me today."


@pytest.fixture(scope="module")
def base_folder(folders):
    return str(Path(folders["stars"]).parent / "base")


@pytest.fixture(scope="module")
def with_base(models, base_folder):
    """The models of the server, and their base model as one of its own."""
    return ServedModels([*models.values(), *open_models({"base": base_folder}).values()])


def found(models, asked, least_mass=0.0, **limits):
    """What the page finds through a queue of its own."""
    scheduler = Scheduler(models.compute, Limits(**limits))
    computer = Computer(models, Limits(**limits), scheduler, Telemetry(scheduler, frozenset()))

    async def is_gone():
        return False

    try:
        return asyncio.run(ask(computer, asked, least_mass, is_gone))
    finally:
        scheduler.close()


def test_a_prompts_number_is_that_of_python_before_and_after(with_base, alone, base_folder):
    (one,) = found(with_base, Asked(model="stars", text=PROMPT, base=True))
    zero_shot = RegressionPredictor.from_pretrained(base_folder, alone["stars"].grid)
    assert one.scale == (0, 4) and one.ends == ("0", "4")
    for side, predictor in zip(one.sides, (zero_shot, alone["stars"]), strict=True):
        predictions, distribution = predictor.predict([PROMPT], return_distribution=True)
        assert side.value == pytest.approx(predictions[0], abs=1e-5)
        assert list(side.probabilities.values()) == pytest.approx(distribution.probs[0].tolist(), abs=1e-6)
        assert side.mass == pytest.approx(distribution.mass.item(), abs=1e-6)
        assert side.entropy == pytest.approx(distribution.entropy.item(), abs=1e-5)
    before, after = (np.log(list(side.probabilities.values())) for side in one.sides)
    assert np.abs(before - after).max() > 1e-4
    # The adapter is at work again for the next request.
    assert found(with_base, Asked(model="stars", text=PROMPT))[0].sides == one.sides[1:]


def test_answers_are_those_of_python_before_and_after(with_base, alone, base_folder):
    answers = found(with_base, Asked(model="tickets", text=STATE, questions=TICKETS, base=True))
    asked = [
        one.decide(STATE, TICKETS) for one in (RegressionPredictor.from_pretrained(base_folder), alone["tickets"])
    ]
    assert [one.name for one in answers] == list(TICKETS)
    for one in answers:
        for side, expected in zip(one.sides, asked, strict=True):
            answer = expected[one.name]
            assert list(side.probabilities.values()) == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
            assert side.mass == pytest.approx(answer.label_mass, rel=1e-4)
            shares = np.array(list(answer.probabilities.values()))
            assert side.entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)
            assert side.value == (answer.value if one.kind == "choice" else pytest.approx(answer.value, abs=1e-5))
    scales = {one.kind: (one.scale, one.ends) for one in answers}
    assert scales["score"] == ((0, 2), ("can wait", "today")) and scales["predicate"] == ((0, 1), ("no", "yes"))
    assert scales["number"] == ((0, 3), ("0", "3")) and scales["choice"][0] is None


def test_a_base_model_takes_any_grid(with_base, base_folder):
    (one,) = found(with_base, Asked(model="base", text=PROMPT, grid="1..5..0.5"))
    grid = NumberGrid.parse("1..5..0.5")
    (expected,) = RegressionPredictor.from_pretrained(base_folder, grid).predict([PROMPT])
    assert [side.model for side in one.sides] == ["base"] and len(one.sides[0].probabilities) == 9
    assert one.sides[0].value == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RequestError, match="numbers or questions of its own"):
        found(with_base, Asked(model="stars", text=PROMPT, grid="1..5"))
    with pytest.raises(RequestError, match=r"1,000,001 numbers, and the server takes 1,000"):
        found(with_base, Asked(model="base", text=PROMPT, grid="0..1000000"))


def test_a_calibrated_question_has_its_interval(models, alone):
    predictor = copy(alone["tickets"])
    targets = {"urgency": 2, "team": "billing"}
    asked = {name: TICKETS[name] for name in targets}
    rows = [{"state": f"{STATE} {number}", "questions": asked, "targets": targets} for number in range(8)]
    predictor.calibrate_questions(rows)
    adapter = predictor.model.active_adapters[0]
    served = ServedModels([replace(models["tickets"], predictor=predictor, adapter=adapter)])
    assert usual_level(served["tickets"]) == 0.8 and usual_level(models["tickets"]) is None
    other = {**asked, "refund": TICKETS["refund"]}
    answers = found(served, Asked(model="tickets", text=STATE, questions=other, interval=0.5, base=True))
    expected = predictor.decide(STATE, asked, interval=0.5)
    urgency, team, refund = (one.sides for one in answers)
    assert urgency[1].low == pytest.approx(expected["urgency"].low, abs=1e-5)
    assert urgency[1].high == pytest.approx(expected["urgency"].high, abs=1e-5)
    assert team[1].options == expected["team"].options
    assert "not calibrated" in refund[1].remark and refund[1].low is None
    assert all(sides[0].low is None and sides[0].options is None for sides in (urgency, team, refund))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": ""}, "empty"),
        ({"text": PROMPT, "model": "moon"}, "There is no model 'moon'"),
        ({"text": "[1, 2]"}, "no list of messages"),
        ({"text": "word " * 3000}, "1,024"),
        ({"text": "\ud800"}, "half a character"),
        ({"text": PROMPT, "questions": TICKETS}, "the server takes 3"),
        ({"text": PROMPT, "questions": {"a": {"type": "score", "criteria": ["one"]}}}, "2 to 10 levels"),
        ({"text": PROMPT, "questions": {"a": {"kind": "score"}}}, "cannot be read"),
    ],
)
def test_the_limits_hold_on_the_page_too(models, asked, words):
    with pytest.raises(RequestError, match=words):
        found(models, Asked(**{"model": "stars", **asked}), questions=3)


def test_what_the_labels_do_not_answer_is_not_told(models):
    (one,) = found(models, Asked(model="tickets", text=STATE, questions={"a": TICKETS["refund"]}), least_mass=1.1)
    assert one.sides[0].value is None and not one.sides[0].probabilities and "1.1" in one.sides[0].remark


@pytest.mark.parametrize(
    "asked",
    [
        Asked(model="a & b", text="Größe?\nja", grid="1..5", base=True),
        Asked(model="stars", text='{"state": 1}', interval=0.8),
        Asked(model="tickets", text=STATE, questions=TICKETS, base=True),
    ],
)
def test_a_link_holds_what_is_asked(asked):
    assert Asked.of_query(dict(parse_qsl(asked.query()))) == asked


def test_links_that_cannot_be_read():
    assert Asked.of_query({"model": "stars"}) is None
    for query in ({"questions": "{"}, {"questions": "[]"}, {"interval": "high"}):
        with pytest.raises(RequestError, match="link"):
            Asked.of_query({"text": "a", **query})


def test_a_text_fills_the_one_column_of_the_template(models):
    predictor = copy(models["stars"].predictor)
    predictor.prompt_form = PromptForm(PromptTemplate("Review: {text} Stars:"))
    model = replace(models["stars"], predictor=predictor)
    assert prompt_of(model, "bad") == {"text": "bad"}
    assert prompt_of(model, '{"prompt": "Review: bad Stars:"}') == {"prompt": "Review: bad Stars:"}
    assert prompt_of(models["stars"], "bad [1]") == "bad [1]"
