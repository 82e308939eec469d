"""The routes: the numbers of Python, in the shapes of others' clients."""

import json
import shutil

import openai
import pytest
from support.serving import TICKETS, Served

from raft_peft import RegressionPredictor
from raft_peft.prediction.remote.decisions import RemoteDecisions
from raft_peft.prediction.remote.served import ServedRegressionPredictor
from raft_peft.serving.app import create_app
from raft_peft.serving.limits import Limits
from raft_peft.serving.models import open_models

PROMPTS = ["Review: bad. Stars:", "Review: very, very good indeed. Stars:"]
DECISION = {"model": "tickets", "input": "a", "questions": [{"type": "predicate", "instructions": "Is it so?"}]}
STATE = "I was charged twice. Please refund me today."


def test_predictions_are_those_of_python(served, alone):
    body = {"prompts": PROMPTS, "distribution": True, "quantiles": [0.1, 0.9]}
    answer = served.client.post("/v1/predict", json=body).json()
    numbers, distribution = alone["stars"].predict(PROMPTS, return_distribution=True)
    assert answer["model"] == "stars"
    assert [one["prediction"] for one in answer["predictions"]] == pytest.approx(numbers.tolist(), abs=1e-5)
    for one, shares in zip(answer["predictions"], distribution.probs.tolist(), strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(shares, abs=1e-6)
    assert [one["quantiles"]["0.9"] for one in answer["predictions"]] == pytest.approx(
        distribution.quantile(0.9).tolist()
    )


def test_systemone_answers_are_those_of_python(served, alone):
    answer = served.client.post("/v1/systemone", json={"model": "tickets", "state": STATE}).json()
    expected = alone["tickets"].decide(STATE)
    found = answer["answers"]
    assert found["urgency"]["score"] == pytest.approx(expected["urgency"].value, abs=1e-5)
    assert found["urgency"]["legend"] == {"0": "can wait", "1": "this week", "2": "today"}
    assert found["refund"]["noul"] == pytest.approx(expected["refund"].value, abs=1e-5)
    assert found["team"]["choice"] == expected["team"].value
    assert found["days"]["number"] == pytest.approx(expected["days"].value, abs=1e-5)
    for name, one in expected.items():
        assert answer["diagnostics"][name]["label_mass"] == pytest.approx(one.label_mass, rel=1e-4)


def test_openais_client_gets_the_same_answers(served, alone):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    questions = [
        {
            "type": "score",
            "name": "urgency",
            "instructions": "How urgent?",
            "levels": [{"label": "can wait"}, {"label": "this week"}, {"label": "today"}],
        },
        {"type": "predicate", "instructions": "Is a refund asked for?"},
        {
            "type": "choice",
            "name": "team",
            "instructions": "Which team?",
            "choices": [{"value": "billing", "description": "payments"}, {"value": "other"}],
        },
        {"type": "choice", "instructions": "Is it so?", "choices": [{"value": "true"}, {"value": True}]},
    ]
    made = client.decisions.create(model="tickets", input=STATE, questions=questions)
    expected = alone["tickets"].decide(STATE)
    assert made.answers[0].score == pytest.approx(expected["urgency"].value, abs=1e-5)
    assert made.answers[1].probability == pytest.approx(expected["refund"].value, abs=1e-5)
    assert made.answers[1].name is None
    assert made.answers[2].choice == expected["team"].value
    assert made.answers[3].choice in ("true", True)
    assert made.usage.input_tokens_details.cached_tokens > 0


def test_requests_that_come_together_do_not_mix(served, alone):
    from concurrent.futures import ThreadPoolExecutor

    expected = alone["stars"].predict(PROMPTS).tolist()
    urgent = alone["tickets"].decide(STATE)["urgency"].value

    def ask(number):
        if number % 3 == 0:
            answer = served.client.post("/v1/systemone", json={"model": "tickets", "state": STATE}).json()
            return abs(answer["answers"]["urgency"]["score"] - urgent)
        if number % 7 == 0:
            return served.client.post("/v1/predict", json={"prompts": [""]}).status_code - 400
        prompt = number % 2
        answer = served.client.post("/v1/predict", json={"prompts": [PROMPTS[prompt]]}).json()
        return abs(answer["predictions"][0]["prediction"] - expected[prompt])

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(60))) < 1e-5


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [
        ("/v1/predict", {"prompts": []}, 400, "at least 1 item"),
        ("/v1/predict", {"prompts": ["a"], "model": "moon"}, 404, "There is no model 'moon'. Ask for one of stars"),
        ("/v1/predict", {"prompts": ["a"], "model": "tickets"}, 400, "has no grid"),
        ("/v1/predict", {"prompts": ["a"], "interval": 0.9}, 400, "not calibrated"),
        ("/v1/predict", {"prompts": ["a"], "sampling": 1}, 400, "sampling"),
        ("/v1/systemone", {"state": "a"}, 400, "`questions` are missing"),
        ("/v1/systemone", {"state": "", "questions": {"a": {"type": "noul"}}}, 400, "`state` is empty"),
        ("/v1/systemone", {"state": "a", "questions": {"a": {"type": "text"}}}, 400, "its type is 'text'"),
        ("/v1/systemone", {"state": "a", "questions": {f"{n}": TICKETS["refund"] for n in range(201)}}, 400, "200"),
        (
            "/v1/systemone",
            {"state": "a", "questions": {"n": {"type": "number", "criteria": "0..1000000000"}}},
            400,
            "1,000,000,001 numbers, and the server takes 1,000",
        ),
        ("/v1/systemone", {"state": {"a": ["\ud800"]}, "questions": {"a": {"type": "noul"}}}, 400, "half a character"),
        ("/v1/predict", {"prompts": [{"prompt": "\ud800"}]}, 400, "half a character"),
        ("/v1/decisions", {"model": "stars", "input": " ", "questions": [{"type": "predicate"}]}, 400, "instructions"),
        # What the one shape has and the other has not.
        ("/v1/decisions", {**DECISION, "interval": 0.9}, 400, "interval: Extra inputs"),
        ("/v1/decisions", {**DECISION, "state": "a"}, 400, "state: Extra inputs"),
        ("/v1/decisions", {**DECISION, "questions": [{"type": "noul", "instructions": "a"}]}, 400, "'noul'"),
        ("/v1/decisions", {**DECISION, "questions": [{"type": "number", "instructions": "a"}]}, 400, "'number'"),
        ("/v1/decisions", {name: DECISION[name] for name in ("input", "questions")}, 400, "model: Field required"),
        ("/v1/systemone", DECISION, 400, "input: Extra inputs"),
        ("/v1/systemone", {"state": "a", "questions": [{"type": "noul"}]}, 400, "a valid dictionary"),
        ("/v1/systemone", {"model": "tickets", "state": "a", "interval": 0.9}, 400, "not calibrated for questions"),
        ("/v1/systemone", {"model": "tickets", "state": "a", "interval": 2}, 400, "interval: "),
        ("/v1/predict", {"prompts": ["a", "word " * 3000]}, 400, "Prompt 1 has more tokens than the 1,024"),
        ("/v1/systemone", {"state": "word " * 3000, "questions": {"a": {"type": "noul"}}}, 400, "than the 1,024"),
        ("/v1/moon", {}, 404, "Not Found"),
    ],
)
def test_what_is_refused_says_why(served, route, body, status, words):
    # Written by the standard library, which can write half a character.
    answer = served.client.post(route, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_large_body_is_refused_unread(models):
    served = Served(create_app(models, Limits(body_bytes=1000)))

    def parts():
        for _ in range(10):
            yield b" " * 500

    assert served.client.post("/v1/predict", content=b" " * 1001).status_code == 413
    assert served.client.post("/v1/predict", content=parts()).status_code == 413
    served.stop()


def test_a_key_is_asked_for(models):
    served = Served(create_app(models, api_key="a-long-secret"))
    body = {"prompts": PROMPTS}
    assert served.client.get("/health").status_code == 200
    wrong = [{}, {"Authorization": "Bearer a-long-secre"}, {"Authorization": "a-long-secret"}]
    answers = [served.client.post("/v1/predict", json=body, headers=headers) for headers in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    right = {"Authorization": "Bearer a-long-secret"}
    assert served.client.post("/v1/predict", json=body, headers=right).status_code == 200
    served.stop()


def test_a_question_the_labels_do_not_answer_is_refused(models):
    served = Served(create_app(models, least_mass=1.1))
    asked = served.client.post("/v1/systemone", json={"model": "tickets", "state": STATE}).json()
    assert asked["answers"] == {} and set(asked["diagnostics"]) == set(TICKETS)
    body = {"model": "stars", "input": STATE, "questions": [{"type": "predicate", "instructions": "So?", "name": "a"}]}
    assert served.client.post("/v1/decisions", json=body).json()["answers"] == [{"type": "refusal", "name": "a"}]
    for api in ("systemone", "decisions"):
        remote = RemoteDecisions(f"{served.url}/v1", "tickets", api=api, api_key="")
        assert remote.decide(STATE, {"refund": TICKETS["refund"]}) == {}
    served.stop()


def test_what_the_server_tells_of_itself(served):
    listed = {one["id"]: one for one in served.client.get("/v1/models").json()["data"]}
    assert listed["stars"]["grid"] == [0, 1, 2, 3, 4] and set(listed["tickets"]["questions"]) == set(TICKETS)
    assert served.client.get("/health").json()["status"] == "ok"
    served.client.post("/v1/predict", json={"prompts": PROMPTS})
    assert 'raft_peft_requests_total{route="/v1/predict",status="200"}' in served.client.get("/metrics").text
    assert "/v1/systemone" in served.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("api", ["systemone", "decisions"])
def test_our_remote_predictor_gets_the_same_answers(served, alone, api):
    asked = {name: question for name, question in TICKETS.items() if name != "days" or api == "systemone"}
    remote = RemoteDecisions(f"{served.url}/v1", "tickets", api=api, api_key="")
    rows = [{"state": STATE, "questions": asked}, {"state": {"text": "It broke."}, "questions": asked}]
    for found, expected in zip(remote.decide_rows(rows), alone["tickets"].decide_rows(rows), strict=True):
        for name, answer in expected.items():
            assert list(found[name].probabilities.values()) == pytest.approx(
                list(answer.probabilities.values()), abs=1e-5
            )
    with pytest.raises(ConnectionError, match="There is no model 'moon'"):
        RemoteDecisions(f"{served.url}/v1", "moon", api=api, api_key="").decide(STATE, asked)


def _check_intervals_of_questions(served, judge, rows):
    expected = judge.decide_rows(rows, interval=0.8)
    for api in ("systemone", "decisions"):
        remote = RemoteDecisions(f"{served.url}/v1", "tickets", api=api, api_key="")
        for found, answers in zip(remote.decide_rows(rows, interval=0.8), expected, strict=True):
            urgency = answers["urgency"]
            assert (found["urgency"].low, found["urgency"].high) == pytest.approx(
                (urgency.low, urgency.high), abs=1e-5
            )
            assert found["team"].options == answers["team"].options
    body = {"model": "tickets", **{name: rows[0][name] for name in ("state", "questions")}, "interval": 0.8}
    answer = served.client.post("/v1/systemone", json=body).json()["answers"]
    urgency = expected[0]["urgency"]
    assert (answer["urgency"]["low"], answer["urgency"]["high"]) == pytest.approx(
        (urgency.low, urgency.high), abs=1e-5
    )
    assert answer["refund"]["options"] == list(expected[0]["refund"].options) and "low" not in answer["refund"]
    refused = served.client.post("/v1/systemone", json={**body, "questions": {"days": TICKETS["days"]}})
    assert refused.status_code == 400 and "'days' is not calibrated" in refused.json()["error"]["message"]


def test_intervals_of_a_calibrated_folder(folders, tmp_path):
    folder = shutil.copytree(folders["stars"], tmp_path / "stars")
    predictor = RegressionPredictor.from_pretrained(folder)
    rows = [{"prompt": f"Review: {number}. Stars:", "shop": "ab"[number % 2]} for number in range(40)]
    predictor.calibrate(rows, [number % 5 for number in range(40)], groups="shop").save(folder)
    of_questions = shutil.copytree(folders["tickets"], tmp_path / "tickets")
    judge = RegressionPredictor.from_pretrained(of_questions)
    targets = [{"urgency": number % 3, "refund": number % 2, "team": "other"} for number in range(20)]
    states = [
        {"state": f"{number}", "targets": targets[number], "questions": {name: TICKETS[name] for name in targets[0]}}
        for number in range(20)
    ]
    judge.calibrate_questions(states).save(of_questions)
    served = Served(create_app(open_models({"stars": str(folder), "tickets": str(of_questions)})))
    _check_intervals_of_questions(served, judge, states[:3])
    remote = ServedRegressionPredictor(f"{served.url}/v1", "stars", api_key="")
    here, there = (one.predict(rows, interval=0.8, return_distribution=True) for one in (predictor, remote))
    for name in ("predictions", "low", "high"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), abs=1e-5)
    body = {"prompts": [rows[0], rows[3]], "interval": 0.8}
    found = served.client.post("/v1/predict", json=body).json()["predictions"]
    expected = predictor.predict([rows[0], rows[3]], interval=0.8)
    assert [one["low"] for one in found] == pytest.approx(expected.low.tolist(), abs=1e-5)
    assert [one["high"] for one in found] == pytest.approx(expected.high.tolist(), abs=1e-5)
    for prompts, words in (([PROMPTS[0]], "shop"), ([{**rows[0], "shop": "c"}], "'c'")):
        answer = served.client.post("/v1/predict", json={**body, "prompts": prompts})
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    served.stop()
