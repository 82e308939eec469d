"""Typed questions on the command line: one folder that `raft-peft train` wrote, and what other commands do with it."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import make_tiny_llama
from datasets import Dataset
from support.questions import QUESTIONS, question_rows
from transformers import AutoTokenizer

from raft_peft import RegressionPredictor
from raft_peft.cli.command import main
from raft_peft.data.row_sources import read_rows

ROWS = question_rows()
TRAIN = ["--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true", "--gradient_checkpointing", "false"]
TRAIN += ["--max_steps", "1", "--lora_r", "2", "--num_train_epochs", "1"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def without(rows, *names):
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    """A real one, since labels such as "yes" must be one token."""
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer):
    """A base model, rows, questions, and the folder of an adapter that was trained on them."""
    folder = tmp_path_factory.mktemp("questions")
    make_tiny_llama(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    # The states are written from columns, and the questions are in a file of their own.
    rows = [{"text": row["state"], **without([row], "state", "questions")[0]} for row in ROWS]
    write(folder / "train.jsonl", rows)
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    (folder / "train.yaml").write_text(
        "prompt_template: '{text}'\nquestion_weights: {anger: 2}\nquestion_template: {aliases: {'yes': ['Yes']}}\n"
    )
    arguments = ["train", "--model_name_or_path", str(folder / "base"), "--questions", str(folder / "questions.json")]
    arguments += ["--train_file", str(folder / "train.jsonl"), "--eval_file", str(folder / "train.jsonl")]
    arguments += ["--config", str(folder / "train.yaml"), "--output_dir", str(folder / "adapter"), *TRAIN]
    assert main(arguments) == 0
    return folder


@pytest.fixture(autouse=True)
def tokenizer_is_read_once(tokenizer, monkeypatch):
    # To read it takes longer than the tiny model needs for its answers.
    monkeypatch.setattr("raft_peft.prediction.opening.open_tokenizer", lambda *_, **__: tokenizer)


def run(capsys, *arguments):
    code = main([str(one) for one in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said


def test_training_and_evaluation_agree(files, capsys):
    saved = json.loads((files / "adapter" / "raft_config.json").read_text())
    assert list(saved["questions"]) == list(QUESTIONS)
    assert saved["prompt_template"] == "{text}"
    assert saved["question_template"] == {"aliases": {"yes": ["Yes"]}}
    output = files / "metrics.json"
    code, said = run(
        capsys, "evaluate", files / "train.jsonl", "--model", files / "adapter", "--output", output,
        "--picture", files / "picture.png",
    )  # fmt: skip
    assert code == 0, said.err
    of_trainer = json.loads((files / "adapter" / "eval_results.json").read_text())
    metrics = json.loads(output.read_text())
    assert metrics.pop("rows") == 8
    assert {f"eval_{name}" for name in metrics} <= set(of_trainer)
    for name, value in metrics.items():
        assert value == pytest.approx(of_trainer[f"eval_{name}"], abs=2e-3), name
    lines = said.out.splitlines()
    heads, anger = lines[2].split(), next(line for line in lines if line.startswith("anger")).split()
    assert heads[:3] == ["question", "type", "rmse"]
    assert float(anger[2]) == pytest.approx(metrics["anger_rmse"], abs=5e-4)
    assert f"macro_nll {metrics['macro_nll']:.3f}" in lines
    assert (files / "picture.png").stat().st_size > 1000


def test_predictions_are_continued_in_a_file(files, tmp_path, capsys, caplog):
    target = tmp_path / "out.jsonl"
    words = ["predict", files / "train.jsonl", target, "--model", files / "adapter", "--chunk-size", "2"]
    assert run(capsys, *words, "--limit", "3")[0] == 0
    code, said = run(capsys, *words)
    assert code == 0
    assert "holds 3 rows already" in caplog.text and "5 rows were predicted" in said.out
    found = list(read_rows(target))
    predictor = RegressionPredictor.from_pretrained(files / "adapter")
    expected = predictor.decide_rows([{"state": row["state"]} for row in ROWS])
    for row, answers, source in zip(found, expected, ROWS, strict=True):
        assert row["targets"] == source["targets"]
        assert list(row["answers"]) == list(QUESTIONS)
        assert row["answers"]["kind"] == {"value": answers["kind"].value}
        assert row["answers"]["price"]["value"] == pytest.approx(answers["price"].value, abs=1e-3)
    assert json.loads((tmp_path / "out.jsonl.made_by.json").read_text())["made_by"]["questions"] == predictor.questions
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps({"spam": QUESTIONS["spam"]}))
    code, said = run(capsys, *words, "--questions", fewer)
    assert code == 1 and "was written with another questions" in said.err
    code, said = run(capsys, *words, "--distribution")
    assert code == 1 and "was written with another distribution (false, not true)" in said.err


def test_a_table_has_a_column_for_each_figure(files, tmp_path, capsys):
    source, target = tmp_path / "rows.csv", tmp_path / "out.csv"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "price"])
        writer.writerows((index, row["state"], row["targets"].get("price")) for index, row in enumerate(ROWS))
    words = [source, target, "--model", files / "adapter", "--distribution"]
    assert run(capsys, "predict", *words)[0] == 0
    row = next(read_rows(target))
    assert list(row)[:6] == [
        "id",
        "text",
        "price",
        "answer_anger",
        "answer_anger_probabilities",
        "answer_anger_label_mass",
    ]
    probabilities = json.loads(row["answer_anger_probabilities"])
    assert list(probabilities) == QUESTIONS["anger"]["criteria"]
    assert float(row["answer_anger"]) == pytest.approx(
        probabilities["annoyed"] + 2 * probabilities["furious"], abs=1e-5
    )
    # Targets are in the column of the question's id, and the questions without one are left out.
    price = tmp_path / "price.json"
    price.write_text(json.dumps({"price": QUESTIONS["price"]}))
    code, said = run(capsys, "evaluate", source, "--model", files / "adapter", "--questions", price)
    assert code == 1 and "row 0: no question of 'price' has a target" in said.err
    with source.open() as file:
        head, *lines = file.read().splitlines()
    source.write_text("\n".join([head, *lines[1::2]]) + "\n")
    code, said = run(capsys, "evaluate", source, "--model", files / "adapter", "--questions", price)
    assert code == 0 and "4 rows of" in said.out and "number" in said.out


def test_rows_bring_their_own_questions_to_a_base_model(files, tmp_path, capsys):
    source = write(tmp_path / "rows.jsonl", ROWS[:2])
    code, said = run(capsys, "predict", source, "--model", files / "base")
    printed = [json.loads(line) for line in said.out.splitlines()]
    assert code == 0
    assert [{name: row[name] for name in ROWS[0]} for row in printed] == ROWS[:2]
    parquet = tmp_path / "rows.parquet"
    Dataset.from_list(
        [{**row, "questions": {"anger": QUESTIONS["anger"]}, "targets": None} for row in ROWS[:2]]
    ).to_parquet(parquet)
    code, said = run(capsys, "predict", parquet, "--model", files / "base")
    again = [json.loads(line) for line in said.out.splitlines()]
    assert code == 0
    assert [row["answers"]["anger"] for row in again] == [row["answers"]["anger"] for row in printed]
    code, said = run(
        capsys, "predict", source, tmp_path / "o.csv", "--model", files / "base", "--question-template", "sglang"
    )
    assert code == 0
    assert float(next(read_rows(tmp_path / "o.csv"))["answer_spam"]) != printed[0]["answers"]["spam"]["value"]


def test_calibrated_intervals(files, tmp_path, capsys):
    model, target, output = tmp_path / "model", tmp_path / "out.csv", tmp_path / "metrics.json"
    shutil.copytree(files / "adapter", model)
    code, said = run(capsys, "calibrate", files / "train.jsonl", "--model", model, "--intervals", "constant")
    assert code == 0
    assert said.out.startswith(f"Calibrated on 8 rows. Saved in {model}.\nanger (score, 8 rows): targets lie within")
    words = [files / "train.jsonl", "--model", model, "--interval", "0.5"]
    assert run(capsys, "evaluate", *words, "--output", output)[0] == 0
    metrics = json.loads(output.read_text())
    assert run(capsys, "predict", *words[:1], target, *words[1:])[0] == 0
    found = list(read_rows(target))
    assert list(found[0])[2:] == [
        *("answer_anger", "answer_anger_low", "answer_anger_high", "answer_spam", "answer_spam_options"),
        *("answer_kind", "answer_kind_options", "answer_price", "answer_price_low", "answer_price_high"),
    ]
    low, high = (np.array([float(row[f"answer_anger_{end}"]) for row in found]) for end in ("low", "high"))
    labels = np.array([np.mean(row["targets"]["anger"]) for row in ROWS])
    # 9 x 0.5 = 4.5: the 5th error of the 8 is not exceeded by 5 of them, or more where errors are alike.
    assert metrics["interval"] == 0.5
    assert metrics["anger_coverage"] == np.mean((low <= labels) & (labels <= high)) >= 5 / 8
    assert metrics["anger_mean_width"] == pytest.approx(np.mean(high - low), abs=1e-4)
    sets = [json.loads(row["answer_kind_options"]) for row in found]
    assert metrics["kind_mean_options"] == np.mean([len(one) for one in sets])
    shares = [sum({"letter": 0.8, "bill": 0.2}[name] for name in one) for one in sets]
    assert metrics["kind_coverage"] == pytest.approx(np.mean(shares), abs=1e-6)
    code, said = run(capsys, "predict", *words[:3], "--interval", "0.99")
    assert code == 1 and "99 rows or more" in said.err


TEXT = {"text": "a"}
STATE = {"state": "a"}


@pytest.mark.parametrize(
    ("command", "model", "rows", "options", "message"),
    [
        ("predict", "base", [STATE], ["--questions", "none.json"], "no file 'none.json' of questions"),
        ("predict", "base", [STATE], ["--questions", "[1]"], r"holds \[1\]. Write {\"ID\""),
        ("predict", "base", [STATE], ["--questions", "{"], "is not JSON"),
        ("predict", "base", [STATE], ["--questions", '{"a": {"type": "stars"}}'], "question 'a': its type is 'stars'"),
        (
            "predict",
            "adapter",
            [{"prompt": "a"}],
            [],
            r"row 0: the row has no `state`, nor .* template '{text}'; .*--prompt-template '{prompt}'`",
        ),
        ("predict", "adapter", [{"words": "a"}], [], r"its columns are \['words'\].*--prompt-template '{words}'`"),
        (
            "predict",
            "base",
            [STATE],
            ["--prompt-template", "{txt}", "--questions", '{"a": {"type": "noul"}}'],
            "names the column 'txt'",
        ),
        ("predict", "adapter", [{**TEXT, "answers": 1}], [], "Row 0 has a column 'answers' already"),
        ("predict", "adapter", [TEXT], ["--grid", "1,2"], "`--grid` is for rows with one number, and here typed"),
        ("predict", "adapter", [TEXT], ["--decision", "mode"], "`--decision` is for rows with one number"),
        ("predict", "adapter", [TEXT], ["--calibrated"], "`--calibrated` is for rows with one number"),
        ("predict", "adapter", [TEXT], ["--interval", "0.9"], "is not calibrated.*raft-peft calibrate HELDOUT_ROWS"),
        (
            "predict",
            "base",
            [{"prompt": "a"}],
            ["--grid", "1,2", "--question-template", "sglang"],
            "has none. Leave it",
        ),
        ("predict", "base", ROWS, ["--grid", "1,2"], "`--grid` is for rows with one number"),
        ("predict", "base", [STATE], ["--grid", "1,2"], "no `prompt`.* `state`, pass `--questions questions.json`"),
        ("evaluate", "adapter", [TEXT], [], "no question of 'anger', 'spam', 'kind', 'price' has a target"),
        (
            "evaluate",
            "adapter",
            [{**TEXT, "targets": {"anger": 1}}],
            [],
            "No row has a target for the question 'spam'",
        ),
        ("evaluate", "adapter", [{**TEXT, "targets": {"fun": 1}}], [], "it has a target for 'fun', and asks 'anger'"),
        ("evaluate", "adapter", [{**TEXT, "anger": 3}], [], "row 0: question 'anger': the target 3 is outside"),
        ("evaluate", "adapter", [{**TEXT, "anger": 1}], ["--label-column", "anger"], "`--label-column` is for rows"),
        (
            "evaluate",
            "base",
            [{**STATE, "spam": True}],
            ["--questions", '{"spam": {"type": "noul"}}', "--picture", "p.png"],
            "`--picture p.png` is of expected levels and numbers",
        ),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    command, model, rows, options, message, files, tmp_path, capsys, monkeypatch
):
    def load(*_, **__):
        raise AssertionError

    if "already" not in message:
        monkeypatch.setattr("raft_peft.prediction.opening.open_model", load)
    words = list(options)
    if "--questions" in words and not words[words.index("--questions") + 1].endswith(".json"):
        place = words.index("--questions") + 1
        (tmp_path / "asked.json").write_text(words[place])
        words[place] = str(tmp_path / "asked.json")
    code, said = run(capsys, command, write(tmp_path / "rows.jsonl", rows), "--model", files / model, *words)
    assert code == 1
    assert re.search(message, said.err, re.DOTALL), said.err
    assert not said.out


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([STATE], [], r"There is no grid, and the rows have no questions: their columns are \['state'\].*--questions"),
        (ROWS, ["--grid", "1,2"], "`--grid` is for rows of one number"),
        (ROWS, ["--chat"], "`--chat true` is for rows of `prompt` and `label`, and these rows have typed `questions`"),
        (ROWS, ["--label_column", "stars"], "`--label_column stars` is for rows of"),
        (without(ROWS, "state"), [], r"rows.jsonl: 8 row\(s\) cannot be used.*no `state`"),
        ([], [], "There is no grid"),
    ],
)
def test_mistakes_in_training(rows, options, message, files, tmp_path, capsys):
    arguments = ["--train_file", write(tmp_path / "rows.jsonl", rows), "--output_dir", tmp_path / "out", *TRAIN]
    code, said = run(capsys, "train", "--model_name_or_path", "no-model", *arguments, *options)
    assert code == 1
    assert re.search(message, said.err, re.DOTALL), said.err
