"""The commands of `raft-peft`, as a shell runs them."""

import csv
import json
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.cli.command import main
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.row_files import read_rows
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.train import TrainArguments, load_rows

ROWS = [{"text": f"item {index} of {index % 7}", "label": index % 5 + 0.5 * (index % 2)} for index in range(24)]
TEMPLATE = "Rate the {text} from 0 to 4, the score is"
PROMPTS = [TEMPLATE.format(**row) for row in ROWS]
LABELS = np.array([row["label"] for row in ROWS])


@pytest.fixture
def model(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture(params=[".jsonl", ".csv"])
def rows(tmp_path, request):
    path = tmp_path / f"rows{request.param}"
    with path.open("w", newline="") as file:
        if request.param == ".csv":
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(ROWS)
        else:
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return str(path)


def test_predict_prints_rows_zero_shot(model, rows, capsys):
    assert main(["predict", "--model", model, "--grid", "0..4", "--prompt-template", TEMPLATE, rows]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = RegressionPredictor.from_pretrained(model, range(5)).predict(PROMPTS)
    assert [row["text"] for row in printed] == [row["text"] for row in ROWS]
    assert [row["prediction"] for row in printed] == pytest.approx(expected.tolist(), abs=1e-5)


def test_evaluate(model, rows, tmp_path, capsys):
    options = ["--model", model, "--grid", "0,1,2,3,4", "--prompt-template", TEMPLATE]
    saved, picture = tmp_path / "metrics.json", tmp_path / "picture.png"
    assert main(["evaluate", rows, *options, "--output", str(saved), "--picture", str(picture)]) == 0
    assert "24 rows" in capsys.readouterr().out
    predictor = RegressionPredictor.from_pretrained(model, range(5))
    distribution = predictor.predict_distribution(PROMPTS)
    probs = distribution.probs.numpy().astype(np.float64)
    expected = probs @ np.arange(5)
    on_grid = probs / probs.sum(1, keepdims=True)
    metrics = json.loads(saved.read_text())
    assert metrics["rows"] == 24
    assert metrics["rmse"] == pytest.approx(np.sqrt(((expected - LABELS) ** 2).mean()), abs=1e-4)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(expected, LABELS)[0, 1], abs=1e-4)
    assert metrics["grid_mass"] == pytest.approx(probs.sum(1).mean(), abs=1e-5)
    assert metrics["entropy"] == pytest.approx(-(on_grid * np.log(on_grid)).sum(1).mean(), abs=1e-4)
    assert picture.stat().st_size > 1000


def test_rows_that_cannot_be_evaluated(model, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"prompt": "a", "label": 1}) + "\n" + json.dumps({"prompt": "b", "label": "ten"}) + "\n"
    )
    assert main(["evaluate", str(path), "--model", model, "--grid", "0..4"]) == 1
    assert "row 1: the label 'ten' is not a number" in capsys.readouterr().err
    path.write_text("")
    assert main(["evaluate", str(path), "--model", model, "--grid", "0..4"]) == 1
    assert "no rows to evaluate" in capsys.readouterr().err


def test_calibrated_intervals(model, rows, tmp_path, capsys):
    options = ["--model", model, "--grid", "0..4", "--prompt-template", TEMPLATE]
    assert main(["calibrate", rows, *options]) == 0
    assert "Calibrated on 24 rows" in capsys.readouterr().out
    target = tmp_path / "out.jsonl"
    assert main(["predict", rows, str(target), *options, "--interval", "0.9"]) == 0
    found = list(read_rows(target))
    # 25 x 0.9 = 22.5: the 23rd error of the 24 is not exceeded by 23 of them
    inside = [
        row["prediction_low"] - 1e-9 <= label <= row["prediction_high"] + 1e-9
        for row, label in zip(found, LABELS, strict=True)
    ]
    assert sum(inside) == 23
    assert main(["predict", rows, *options, "--decision", "mode", "--interval", "0.9"]) == 1
    assert "calibration was made with another decision" in capsys.readouterr().err
    assert main(["predict", rows, *options, "--interval", "0.99"]) == 1
    assert "calibrate on 99 rows or more" in capsys.readouterr().err


def test_train_then_predict(model, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "trained"
    arguments = [
        *("train", "--model_name_or_path", model, "--grid", "0..4", "--prompt_template", TEMPLATE),
        *("--train_file", rows, "--eval_file", rows, "--output_dir", str(out), "--max_steps", "3", "--lora_r", "4"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--bf16", "false", "--gradient_checkpointing", "false"),
    ]
    assert main(arguments) == 0
    assert f"The model is in {out}" in capsys.readouterr().out
    metrics = json.loads((out / "eval_results.json").read_text())
    found = evaluate_rows(RegressionPredictor.from_pretrained(out), read_rows(rows), prompt_template=TEMPLATE)
    assert metrics["eval_rmse"] == pytest.approx(found.metrics["rmse"], abs=1e-4)
    merged = tmp_path / "merged"
    assert main(["merge", str(out), str(merged)]) == 0
    assert "Predictions moved by at most" in capsys.readouterr().out
    again = evaluate_rows(RegressionPredictor.from_pretrained(merged), read_rows(rows), prompt_template=TEMPLATE)
    assert again.predictions == pytest.approx(found.predictions, abs=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train_file", "rows.jsonl", "--dataset_name", "a"], "one source of rows"),
        ([], "one source of rows"),
        (["--dataset_name", "a", "--eval_file", "rows.jsonl"], "pass --eval_split"),
        (["--train_file", "rows.jsonl", "--eval_split", "test"], "pass --eval_file"),
        (["--train_file", "none.jsonl"], "no file 'none.jsonl'"),
        (["--train_file", "rows.parquet"], "read and written as .jsonl or .csv"),
    ],
)
def test_rows_to_train_on_that_are_not_there(arguments, message, tmp_path, capsys):
    assert main(["train", "--grid", "0..4", "--output_dir", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_training_reads_files_as_prediction_does(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("zip,text,stars\n02139,NA,3.50\n10001,None,4\n")
    template = "{zip}: {text}. Stars:"
    given = TrainArguments(grid="1..5", train_file=str(path), prompt_template=template)
    rows = load_rows(given, "stars")["train"]
    assert rows["prompt"] == [PromptTemplate(template)(row) for row in read_rows(path)]
    assert rows["prompt"][0] == "02139: NA. Stars:"
    assert rows["stars"] == [3.5, 4.0]
    assert rows.column_names == ["stars", "prompt"]


def test_settings_in_yaml(model, rows, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model_name_or_path: {model}\ngrid: [0, 1, 2, 3, 4]\ntrain_file: {rows}\nprompt_template: '{TEMPLATE}'\n"
        f"output_dir: {tmp_path / 'out'}\nmax_steps: 1\nuse_cpu: true\nbf16: false\ndisable_tqdm: true\n"
    )
    assert main(["train", "--config", str(config), "--lora_r", "2"]) == 0
    assert json.loads((tmp_path / "out" / "raft_config.json").read_text())["values"] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


def test_a_file_is_not_continued_with_other_columns(model, rows, tmp_path, capsys):
    lines = list(read_rows(rows))
    part, target = tmp_path / "part.jsonl", tmp_path / "out.jsonl"
    options = ["--model", model, "--grid", "0..4", "--prompt-template", TEMPLATE]
    part.write_text("".join(json.dumps(row) + "\n" for row in lines[:5]))
    assert main(["predict", str(part), str(target), *options]) == 0
    part.write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert main(["predict", str(part), str(target), *options, "--distribution"]) == 1
    assert "was written with other options" in capsys.readouterr().err
    assert len(list(read_rows(target))) == 5


def test_reader_that_has_seen_enough(model, rows):
    command = [sys.executable, "-m", "raft_peft.cli", "predict", rows, "--model", model, "--grid", "0..4"]
    command += ["--prompt-template", f'"{TEMPLATE}"', "--chunk-size", "1"]
    run = subprocess.run(
        f"{' '.join(command)} | head -n 2", shell=True, capture_output=True, text=True, env=os.environ
    )
    assert len(run.stdout.splitlines()) == 2
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("options", "heard"), [([], 1), (["default"], 3)])
def test_what_the_libraries_say_to_developers_is_not_heard(options, heard, monkeypatch, caplog, recwarn):
    def run(_):
        for category, module in ((FutureWarning, "transformers.modeling_utils"), (UserWarning, "raft_peft.metrics")):
            warnings.warn_explicit("is deprecated", category, "file.py", 1, module)
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load")

    monkeypatch.setattr(sys, "warnoptions", options)
    caplog.set_level(logging.WARNING, logger="bitsandbytes")
    monkeypatch.setattr("raft_peft.cli.plan.run", run)
    assert main(["plan"]) == 0
    assert len(recwarn) + len(caplog.records) == heard


def test_help(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in ("train", "predict", "evaluate", "compare", "plan", "calibrate", "merge"):
        assert f"raft-peft {command}" in listed
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"\n  raft-peft {command} " in capsys.readouterr().out  # an example
    assert main(["dance"]) == 2


@pytest.mark.parametrize("text", ["", "1", "1,one", "0..5..2", "5..1", "1..2..3..4", "..", "1=,2=b", "1,1", "nan,1"])
def test_grids_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"[Gg]rid"):
        NumberGrid.parse(text)


def test_grids():
    assert NumberGrid.parse("-1,0.5,2").values == (-1, 0.5, 2)
    assert len(NumberGrid.parse("0..100")) == 101
    assert NumberGrid.parse("0..100").texts[7] == "7"
    assert NumberGrid.parse("-1..1..0.25").texts == tuple(f"{value:.2f}" for value in np.arange(-1, 1.1, 0.25))
    assert dict(NumberGrid.parse("1=A,2=B,3")) == {1: "A", 2: "B", 3: "3"}


def test_prompt_templates():
    assert PromptTemplate("{{{a}}} {b:>3}")({"a": 1, "b": 2}) == "{1}   2"
    with pytest.raises(ValueError, match=r"'b', which a row lacks.*It has a, c"):
        PromptTemplate("{a} {b}")({"a": 1, "b": None, "c": 2})
    for text in ("no column", "{", "{0}", "{a.b}", "{}"):
        with pytest.raises(ValueError, match="prompt template"):
            PromptTemplate(text)
