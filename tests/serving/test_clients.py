"""Clients of the server: ours from Python, on the command line and in a comparison, and one that others wrote."""

import json

import pytest
from datasets import Dataset, DatasetDict
from support.serving import TICKETS, Served

from raft_peft import RegressionPredictor, RemoteDecisions, ServedRegressionPredictor
from raft_peft.cli.command import main
from raft_peft.compare.results import RunResult
from raft_peft.compare.run import Run, execute
from raft_peft.compare.settings import CompareSettings
from raft_peft.data.questions.form import QuestionForm
from raft_peft.data.questions.question import Question
from raft_peft.data.row_sources import read_rows
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.prediction.questions.evaluation import evaluate_question_rows
from raft_peft.serving.app import create_app

ROWS = [{"prompt": f"Review: number {number}. Stars:", "label": number % 5} for number in range(40)]
# Without the number of days, which /v1/decisions cannot ask for.
QUESTIONS = {name: question for name, question in TICKETS.items() if name != "days"}
STATES = [
    {
        "state": f"Ticket {number}.",
        "urgency": number % 3,
        "refund": number % 2,
        "team": ["billing", "other"][number % 2],
    }
    for number in range(8)
]


@pytest.fixture(scope="module")
def alone(folders):
    """The folders opened each by itself."""
    return {name: RegressionPredictor.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture
def files(tmp_path):
    for name, rows in (("stars", ROWS), ("states", STATES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


def test_numbers_are_those_of_the_folder(served, alone):
    remote = ServedRegressionPredictor(f"{served.url}/v1", "stars", api_key="")
    numbers, distribution = remote.predict(ROWS, return_distribution=True)
    expected, of_folder = alone["stars"].predict(ROWS, return_distribution=True)
    assert numbers == pytest.approx(expected, abs=1e-5)
    assert distribution.probs.numpy() == pytest.approx(of_folder.probs.numpy(), abs=1e-6)
    chat = [[{"role": "user", "content": "Rate it:"}]]
    assert remote.predict(chat) == pytest.approx(alone["stars"].predict(chat), abs=1e-5)


def test_a_prompt_that_the_server_refuses_is_named(served):
    remote = ServedRegressionPredictor(f"{served.url}/v1", "stars", api_key="")
    with pytest.raises(ValueError, match=r"1 row\(s\) cannot be used:\n  row 33: .*has more tokens than the 1,024"):
        remote.predict([*["a"] * 33, "word " * 3000, *["a"] * 10])
    with pytest.raises(ValueError, match=r"row 1: .*no `prompt`"):
        remote.predict([ROWS[0], {"text": "a"}])
    with pytest.raises(ValueError, match=r"row 0: .*cannot be sent as JSON"):
        remote.predict([{"prompt": {1, 2}}])


def test_predict_and_evaluate_as_with_the_folder(served, alone, files, capsys):
    at_server = ["--model", "stars", "--base-url", f"{served.url}/v1"]
    words = ["predict", str(files / "stars.jsonl"), str(files / "out.jsonl"), *at_server, "--distribution"]
    assert main([*words, "--limit", "3"]) == 0 and main(words) == 0
    assert "37 rows were predicted" in capsys.readouterr().out
    found = list(read_rows(files / "out.jsonl"))
    numbers = alone["stars"].predict(ROWS)
    assert [row["prediction"] for row in found] == pytest.approx(numbers.tolist(), abs=1e-5)
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    assert main([*words, "--prompt-template", "It is {label}:"]) == 1
    assert "was written with another prompt_template" in capsys.readouterr().err
    words = ["evaluate", str(files / "stars.jsonl"), *at_server, "--output", str(files / "metrics.json")]
    assert main(words) == 0
    metrics = json.loads((files / "metrics.json").read_text())
    assert metrics.pop("rows") == 40
    assert metrics == pytest.approx(evaluate_rows(alone["stars"], ROWS).metrics, abs=1e-4)


@pytest.mark.parametrize("api", ["systemone", "decisions"])
def test_answers_are_evaluated_as_with_the_folder(api, served, alone, files):
    words = ["evaluate", str(files / "states.jsonl"), "--model", "tickets", "--base-url", f"{served.url}/v1"]
    words += ["--api", api, "--questions", str(files / "questions.json"), "--output", str(files / "metrics.json")]
    assert main(words) == 0
    metrics = json.loads((files / "metrics.json").read_text())
    asked = {name: Question.of(name, raw) for name, raw in QUESTIONS.items()}
    rows = QuestionForm(asked).rows(STATES)
    expected = dict(evaluate_question_rows(alone["tickets"], rows).metrics)
    if api == "decisions":
        # It tells no mass of the labels.
        expected = {name: value for name, value in expected.items() if not name.endswith("label_mass")}
    assert metrics.pop("rows") == 8
    assert metrics == pytest.approx(expected, abs=1e-4)


def test_questions_of_training_come_from_the_server(served, alone, files):
    states = [{"state": row["state"]} for row in STATES]
    words = [
        "predict",
        str(files / "states.jsonl"),
        str(files / "out.csv"),
        "--api",
        "systemone",
        "--model",
        "tickets",
    ]
    assert main([*words, "--base-url", f"{served.url}/v1", "--limit", "3", "--chunk-size", "2"]) == 0
    found = list(read_rows(files / "out.csv"))
    for row, answers in zip(found, alone["tickets"].decide_rows(states[:3]), strict=True):
        for name, answer in answers.items():
            value = row[f"answer_{name}"]
            assert value == answer.value or float(value) == pytest.approx(answer.value, abs=1e-5)


def test_a_served_model_is_a_line_of_a_comparison(served, alone, tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, validation=rows, test=rows).save_to_disk(str(tmp_path / "data"))
    settings = CompareSettings(
        "base", str(tmp_path), train_file="x", grid="0..4", methods="served:model=stars", base_url=f"{served.url}/v1"
    )
    grid = [(float(number), str(number)) for number in range(5)]
    Run(vars(settings), grid, str(tmp_path / "data"), "served:model=stars", 0, None).save(tmp_path / "run")
    execute(tmp_path / "run")
    result = RunResult.load(tmp_path / "run")
    expected = evaluate_rows(alone["stars"], ROWS)
    assert result.metrics["rmse"] == pytest.approx(expected.metrics["rmse"], abs=1e-5)
    assert result.metrics["crps"] == pytest.approx(expected.metrics["crps"], abs=1e-5)
    assert result.predictions["prediction"] == pytest.approx(expected.predictions, abs=1e-5)
    assert result.probs.shape == result.label_shares.shape == (40, 5) and not len(result.curve["step"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "moon"], "There is no model 'moon'. Ask for one of stars, tickets."),
        (["--model", "tickets"], "predicts no numbers. Servers other than raft-peft serve"),
        (["--model", "stars", "--base-url", "{url}/moon"], "404: Not Found. Look whether `--base-url` is right"),
        (["--model", "stars", "--interval", "0.9"], "'stars' of {url}/v1/predict is not calibrated"),
        (["--model", "tickets", "--interval", "0.9", "--api", "systemone"], "gives no calibration of 'tickets'"),
        (["--model", "moon", "--api", "systemone", "--questions", "{folder}/questions.json"], "no model 'moon'"),
        (["--model", "stars", "--dtype", "float32"], "`--dtype` has no effect on a model behind `--api predict`"),
        (["--model", "stars", "--grid", "0..4"], "`--grid` has no effect"),
        (["--model", "stars", "--questions", "{folder}/questions.json", "--api", "predict"], "Set `--api systemone`"),
        (["--model", "stars", "--tokenizer", "x"], "`--tokenizer` is for `--api completions`"),
        (
            ["--model", "stars", "--base-url", "http://localhost:1", "--max-retries", "0"],
            "(0 retries). Look whether the server runs",
        ),
    ],
)
def test_mistakes_are_one_line(words, message, served, files, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    about = {"url": served.url, "folder": files}
    words = ["--base-url", "{url}/v1", *words]
    source = "states" if "systemone" in words else "stars"
    target = files / "out.jsonl"
    assert main(["predict", str(files / f"{source}.jsonl"), str(target), *(one.format(**about) for one in words)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.format(**about) in said


def test_a_wrong_key_says_where_it_comes_from(models):
    served = Served(create_app(models, api_key="secret"))
    for ask in (
        lambda: ServedRegressionPredictor(f"{served.url}/v1", "stars", api_key="other"),
        lambda: RemoteDecisions(f"{served.url}/v1", "tickets", api_key="other").decide("a", QUESTIONS),
    ):
        with pytest.raises(ConnectionError, match=r"401: The API key is missing or wrong.*OPENAI_API_KEY") as caught:
            ask()
        assert "secret" not in str(caught.value)
    assert ServedRegressionPredictor(f"{served.url}/v1", "stars", api_key="secret").grid.values[-1] == 4
    served.stop()


def test_langchains_decisions_get_the_same_answers(served, alone):
    of_langchain = pytest.importorskip("langchain_openai.decisions")
    asked = {
        "urgency": of_langchain.Score(instructions="How urgent?", levels=TICKETS["urgency"]["criteria"]),
        "refund": of_langchain.Predicate(instructions="Is a refund asked for?"),
        "team": of_langchain.Choice(instructions="Which team?", choices={"billing": "payments", "other": ""}),
    }
    client = of_langchain.OpenAIDecisions(model="tickets", base_url=f"{served.url}/v1", api_key="none")
    made = client.invoke({"input": "Refund me!", "questions": asked})
    expected = alone["tickets"].decide("Refund me!")
    assert made.scores["urgency"].score == pytest.approx(expected["urgency"].value, abs=1e-5)
    assert made.predicates["refund"].probability == pytest.approx(expected["refund"].value, abs=1e-5)
    assert made.choices["team"].choice == expected["team"].value
