"""The commands of `raft-peft`, as a shell runs them."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.cli.command import main
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.data.row_sources import read_rows
from raft_peft.methods import MethodSettings
from raft_peft.methods.fields import LOSS_SETTINGS
from raft_peft.prediction.evaluation import evaluate_rows
from raft_peft.train import TrainArguments, load_rows, make_parser, named_files
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.options import parse_options

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
    assert metrics["rmse_of_mean"] == pytest.approx(LABELS.std())
    assert metrics["r2"] == pytest.approx(1 - ((expected - LABELS) ** 2).sum() / ((LABELS - LABELS.mean()) ** 2).sum())
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
    assert "rows.jsonl has no rows" in capsys.readouterr().err


def test_calibrated_intervals(model, rows, tmp_path, capsys):
    options = ["--model", model, "--grid", "0..4", "--prompt-template", TEMPLATE]
    assert main(["calibrate", rows, *options]) == 0
    assert "Calibrated on 24 rows" in capsys.readouterr().out
    target = tmp_path / "out.jsonl"
    assert main(["predict", rows, str(target), *options, "--interval", "0.9"]) == 0
    found = list(read_rows(target))
    # 25 x 0.9 = 22.5: the 23rd error of the 24 is not exceeded by 23 of them
    inside = [row["low"] <= label <= row["high"] for row, label in zip(found, LABELS, strict=True)]
    assert sum(inside) == 23
    metrics = tmp_path / "metrics.json"
    assert main(["evaluate", rows, *options, "--output", str(metrics)]) == 0
    metrics = json.loads(metrics.read_text())
    assert (metrics["interval"], metrics["coverage"]) == (0.9, pytest.approx(23 / 24))
    assert metrics["mean_width"] == pytest.approx(np.mean([row["high"] - row["low"] for row in found]), abs=1e-4)
    capsys.readouterr()
    assert main(["evaluate", rows, *options, "--limit", "3", "--decision", "mode"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("3 rows of ") and "mean_width" not in said.out
    assert main(["predict", rows, *options, "--decision", "mode", "--interval", "0.9"]) == 1
    assert "calibration was made with another decision" in capsys.readouterr().err
    assert main(["predict", rows, *options, "--interval", "0.99"]) == 1
    assert "calibrate on 99 rows or more" in capsys.readouterr().err


def test_groups_and_mapped_predictions(model, tmp_path, capsys):
    rows, target, metrics = (tmp_path / name for name in ("rows.csv", "out.csv", "metrics.json"))
    lines = [f"{row['text']},{row['label']:.0f},{'xy'[index % 2]}" for index, row in enumerate(ROWS)]
    rows.write_text("text,label,topic\n" + "\n".join(lines) + "\n")
    options = ["--model", model, "--grid", "0..4", "--prompt-template", TEMPLATE]
    assert main(["calibrate", str(rows), *options, "--group-column", "topic", "--intervals", "quantiles"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"90% of labels of 'y' lie within the model's own [\d.]+% interval", said)
    assert re.search(
        r"intervals are quantiles. Mean width at level 0.9: [\d.]+ \(constant\), [\d.]+ \(adaptive\)", said
    )
    assert main(["evaluate", str(rows), *options, "--interval", "0.8", "--output", str(metrics)]) == 0
    # ceil(13 x 0.8) = 11 of the 12 of each
    assert json.loads(metrics.read_text())["coverage_x"] >= 11 / 12 - 1e-9
    assert main(["predict", str(rows), *options, "--calibrated"]) == 1
    assert (
        "Calibrate with one: `raft-peft calibrate ROWS --model FOLDER --label-map affine`" in capsys.readouterr().err
    )
    arguments = ["--label-map", "isotonic", "--round-to-grid"]
    assert main(["calibrate", str(rows), *options, *arguments]) == 0
    said = capsys.readouterr().out
    assert "of the mapped prediction" in said and "The isotonic map takes the RMSE from" in said
    assert main(["predict", str(rows), str(target), *options, "--calibrated", "--interval", "0.8"]) == 0
    found = list(read_rows(target))
    assert {float(row[end]) for row in found for end in ("low", "high")} <= set(range(5))
    mapped = np.array([float(row["prediction"]) for row in found])
    assert main(["evaluate", str(rows), *options, "--calibrated", "--output", str(metrics)]) == 0
    labels = np.array([float(row["label"]) for row in found])
    assert json.loads(metrics.read_text())["rmse"] == pytest.approx(np.sqrt(((mapped - labels) ** 2).mean()), abs=1e-4)


def test_train_then_predict(model, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "trained"
    arguments = [
        *("train", "--model_name_or_path", model, "--grid", "0..4", "--prompt_template", TEMPLATE),
        *("--train_file", rows, "--eval_file", rows, "--output_dir", str(out), "--max_steps", "3", "--lora_r", "4"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--bf16", "false"),
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"The model is in {out}" in said
    assert said.count("Chosen for speed: `--gradient_checkpointing false`, since a step takes about 0.0 GB") == 1
    assert "`--padding_free true`.\n" in said
    assert "| Gradient checkpointing | off |\n| padding_free | on |" in (out / "README.md").read_text()
    metrics = json.loads((out / "eval_results.json").read_text())
    # The template is saved with the model.
    found = evaluate_rows(RegressionPredictor.from_pretrained(out), read_rows(rows))
    assert metrics["eval_rmse"] == pytest.approx(found.metrics["rmse"], abs=1e-4)
    merged = tmp_path / "merged"
    assert main(["merge", str(out), str(merged)]) == 0
    assert "Predictions of a few prompts changed by at most" in capsys.readouterr().out
    again = evaluate_rows(RegressionPredictor.from_pretrained(merged), read_rows(rows))
    assert again.predictions == pytest.approx(found.predictions, abs=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train_file", "rows.jsonl", "--dataset_name", "a"], "one source of rows"),
        ([], "one source of rows"),
        (["--dataset_name", "a", "--eval_file", "rows.jsonl"], "pass --eval_split"),
        (["--train_file", "rows.jsonl", "--eval_split", "test"], "pass --eval_file"),
        (["--train_file", "none.jsonl"], "no file 'none.jsonl'"),
        (["--train_file", "rows.parquet"], "no file 'rows.parquet'"),
        (["--train_file", "rows.txt"], "ends in '.txt'. Rows are read from a file in .jsonl, .csv, .tsv or .parquet"),
    ],
)
def test_rows_to_train_on_that_are_not_there(arguments, message, tmp_path, capsys):
    assert main(["train", "--grid", "0..4", "--output_dir", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_training_reads_files_as_prediction_does(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("zip,text,stars\n02139,NA,3.50\n10001,None,4\n")
    template = "{zip}: {text}. Stars:"
    given = TrainArguments(grid="1..5", train_file=str(path), eval_file=[f"dev={path}", f"hard={path}"])
    args = RegressionAwareConfig(str(tmp_path), prompt_template=template, label_column="stars", use_cpu=True)
    rows, evaluated = load_rows(given, args)
    assert list(evaluated) == ["dev", "hard"]
    assert rows.column_names == ["zip", "text", "stars"]
    assert [PromptTemplate(template)(row) for row in rows] == [
        PromptTemplate(template)(row) for row in read_rows(path)
    ]
    assert PromptTemplate(template)(rows[0]) == "02139: NA. Stars:"
    assert rows["stars"] == [3.5, 4.0]
    for files in ([str(path), str(path)], [f"a={path}", f"a={path}"], [f"train={path}"]):
        with pytest.raises(ValueError, match="each need a name of their own"):
            named_files(files)


@pytest.mark.parametrize(("grid", "values"), [("[0, 1, 2, 3, 4]", [0, 1, 2, 3, 4]), ("4", [4])])
def test_settings_in_yaml(grid, values, model, rows, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model_name_or_path: {model}\ngrid: {grid}\ntrain_file: {rows}\nprompt_template: '{TEMPLATE}'\n"
        f"output_dir: {tmp_path / 'out'}\nmax_steps: 1\nuse_cpu: true\nbf16: false\ndisable_tqdm: true\n"
    )
    assert main(["train", "--config", str(config), "--lora_r", "2"]) == 0
    assert json.loads((tmp_path / "out" / "raft_config.json").read_text())["values"] == values
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


@pytest.mark.parametrize("rows", [".jsonl"], indirect=True)
def test_reader_that_has_seen_enough(model, rows):
    command = [sys.executable, "-m", "raft_peft.cli", "predict", rows, "--model", model, "--grid", "0..4"]
    command += ["--prompt-template", f'"{TEMPLATE}"', "--chunk-size", "1"]
    run = subprocess.run(
        f"{' '.join(command)} | head -n 2", shell=True, capture_output=True, text=True, env=os.environ
    )
    assert len(run.stdout.splitlines()) == 2
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("options", "heard"), [([], 1), (["default"], 2)])
def test_what_the_libraries_say_to_developers_is_not_heard(options, heard, monkeypatch, caplog, recwarn):
    def run(parser, words):
        for category, module in ((FutureWarning, "transformers.modeling_utils"), (UserWarning, "raft_peft.metrics")):
            warnings.warn_explicit("is deprecated", category, "file.py", 1, module)

    monkeypatch.setattr(sys, "warnoptions", options)
    caplog.set_level(logging.WARNING, logger="bitsandbytes")
    monkeypatch.setattr("raft_peft.cli.plan.run", run)
    assert main(["plan"]) == 0
    assert len(recwarn) + len(caplog.records) == heard


@pytest.mark.parametrize("command", ["predict", "evaluate", "calibrate"])
@pytest.mark.parametrize("separator", ["-", "_"])
def test_every_setting_can_be_given(command, separator, model, rows, monkeypatch, capsys):
    def open_predictor(name, grid, **settings):
        given.update(settings)
        raise ValueError("seen")

    given: dict = {}
    monkeypatch.setattr(RegressionPredictor, "from_pretrained", open_predictor)
    values = {"method": "raft", "renormalize": True, "end_every_number": False, "constrained": True}
    values |= {"num_samples": 3, "mlp_width": 5, "max_length": 7}
    # The loss changes training alone.
    names = [setting.name for setting in fields(MethodSettings) if setting.name not in LOSS_SETTINGS]
    names += ["separator", "score_prefix", "max_length", "dtype", "autocast", "attn_implementation", "revision"]
    values = {name: values.get(name, "float16" if name in ("dtype", "autocast") else " x") for name in names}
    words = [f"--{name.replace('_', separator)}={value}" for name, value in values.items()]
    words += [f"--prompt{separator}template={TEMPLATE}", "--grid", "-4..4"]
    assert main([command, rows, "--model", model, *words]) == 1
    assert "seen" in capsys.readouterr().err
    assert given.pop("prompt_template") == PromptTemplate(TEMPLATE)
    assert given == {**values, "trust_remote_code": False}


def test_help_of_training_shows_our_own_options(capsys):
    shown = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            main(["train", option])
        assert stopped.value.code == 0
        shown[option] = capsys.readouterr().out
    own = [f"--{one.name} " for kind in (TrainArguments, MethodSettings) for one in fields(kind)]
    assert all(name in text for name in own for text in shown.values())
    assert shown["--help"].index("--pooling") < shown["--help"].index("--learning_rate")
    assert "--adam_beta1" not in shown["--help"]
    assert "--adam_beta1" in shown["--help-all"]


def test_a_switch_that_may_be_unset_needs_no_value():
    parser = make_parser()
    _, args, _ = parse_options(parser, ["--grid=1,2", "--train_file=a", "--output_dir=b", "--greater_is_better"])
    assert args.greater_is_better is True


def test_help(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in ("train", "predict", "evaluate", "compare", "plan", "calibrate", "merge", "push"):
        assert f"raft-peft {command}" in listed
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"\n  raft-peft {command} " in capsys.readouterr().out  # an example
    assert main(["dance"]) == 2


@pytest.mark.parametrize(
    "text", ["", "1,one", "0..5..2", "5..1", "1..2..3..4", "..", "1=,2=b", "1,1", "1=a,1=b,2=c", "nan,1"]
)
def test_grids_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"[Gg]rid"):
        NumberGrid.parse(text)


def test_grids():
    assert NumberGrid.parse("-1,0.5,2").values == (-1, 0.5, 2)
    assert len(NumberGrid.parse("0..100")) == 101
    assert NumberGrid.parse("0..100").texts[7] == "7"
    assert NumberGrid.parse("-1..1..0.25").texts == tuple(f"{value:.2f}" for value in np.arange(-1, 1.1, 0.25))
    assert dict(NumberGrid.parse("1=A,2=B,3")) == {1: "A", 2: "B", 3: "3"}
    assert dict(NumberGrid.parse("5")) == {5: "5"}
