"""Predictions from file to file, killed and continued."""

import copy
import json
import math
import os
import subprocess
import sys
import time
from decimal import Decimal

import pytest
import torch
from peft import get_peft_model
from support.training import lora

from raft_peft import RegressionPredictor, predict_file
from raft_peft.cli.command import main
from raft_peft.data.row_sources import read_rows

PROMPTS = [f"Rate item {index} from 0 to 4, the score is" for index in range(40)]


@pytest.fixture
def model(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def predictor(model):
    return RegressionPredictor.from_pretrained(model, grid=range(5))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "id": n}) + "\n" for n, prompt in enumerate(PROMPTS)))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_numbers_are_those_of_predict(predictor, source, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    assert predict_file(predictor, source, target, chunk_size=7, distribution=True) == len(PROMPTS)
    rows = list(read_rows(target))
    expected = predictor.predict_distribution(PROMPTS)
    assert [int(row["id"]) for row in rows] == list(range(len(PROMPTS)))
    assert [float(row["prediction"]) for row in rows] == pytest.approx(predictor.predict(PROMPTS).tolist(), abs=1e-5)
    row = rows[3]
    if suffix != ".jsonl":
        assert list(row) == ["prompt", "id", "prediction", *(f"p_{number}" for number in range(5)), "mass", "entropy"]
        row = {"probabilities": {str(number): float(row[f"p_{number}"]) for number in range(5)}, **row}
    assert list(row["probabilities"]) == ["0", "1", "2", "3", "4"]
    assert list(row["probabilities"].values()) == pytest.approx(expected.probs[3].tolist(), abs=1e-5)
    assert float(row["mass"]) == pytest.approx(expected.mass[3].item(), abs=1e-5)
    assert float(row["entropy"]) == pytest.approx(expected.entropy[3].item(), abs=1e-5)


def test_numbers_have_as_many_digits_as_mean_something(predictor, source, tmp_path):
    def written(**settings):
        of = RegressionPredictor(predictor.model, predictor.tokenizer, [0, 0.1, 100001], **settings)
        of.calibrate(PROMPTS, [0.0] * len(PROMPTS))
        predict_file(of, source, tmp_path / "out.csv", interval=0.5)
        rows = list(read_rows(tmp_path / "out.csv"))
        (tmp_path / "out.csv").unlink()
        half = of.calibration.half_width(0.5)
        for row, exact in zip(rows, of.predict(PROMPTS).tolist(), strict=True):
            assert float(row["low"]) <= max(exact - half, 0) and float(row["high"]) >= min(exact + half, 100001)
        return [row["prediction"] for row in rows]

    def digits(numbers):
        return max(len(Decimal(number).normalize().as_tuple().digits) for number in numbers)

    assert digits(written()) == 6
    assert digits(written(autocast="bfloat16")) == 4
    assert set(written(decision="mode")) <= {"0.0", "0.1", "100001.0"}


def test_limit_and_then_the_rest(predictor, source, tmp_path):
    target = tmp_path / "out.jsonl"
    assert predict_file(predictor, source, target, limit=5) == 5
    assert predict_file(predictor, source, target, limit=3) == 0
    assert predict_file(predictor, source, target) == 35
    assert [row["id"] for row in read_rows(target)] == list(range(40))


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a"}, {}, "no `prompt`. Rename the column of the text, or set `prompt_template`"),
        ({"prompt": "a", "low": 1}, {"interval": 0.9}, "a column 'low' already"),
        ({"prompt": "a"}, {"interval": 0.9}, "not calibrated"),
        ({"prompt": "a", "mass": 1}, {"distribution": True}, "a column 'mass' already"),
        ({"prompt": "a", "p_3": 1}, {"distribution": True}, "a column 'p_3' already"),
        ({"prompt": 3}, {}, "row 0"),
    ],
)
def test_an_error_at_the_first_row_leaves_no_file(predictor, tmp_path, row, options, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        predict_file(predictor, tmp_path / "rows.jsonl", tmp_path / "out.csv", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "model"}


def test_columns_of_names_that_are_not_added_stay(predictor, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": PROMPTS[0], "low": 1, "mass": 2}) + "\n")
    assert predict_file(predictor, tmp_path / "rows.jsonl", tmp_path / "out.csv") == 1
    assert next(iter(read_rows(tmp_path / "out.csv"))).items() >= {("low", "1"), ("mass", "2")}


@pytest.mark.parametrize("rows_left", [0, 1, 13, 40])
def test_goes_on_behind_the_last_row(predictor, source, tmp_path, rows_left, caplog):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_file(predictor, source, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:rows_left]) + b"".join(lines[rows_left : rows_left + 1])[:9])
    assert predict_file(predictor, source, cut) == len(PROMPTS) - rows_left
    found, expected = list(read_rows(cut)), list(read_rows(whole))
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    numbers = [[row["prediction"] for row in rows] for rows in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    assert (f"holds {rows_left} rows already" in caplog.text) is (rows_left > 0)


def test_a_target_of_another_source_is_refused(predictor, source, tmp_path):
    target, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    predict_file(predictor, source, target)
    other.write_text(json.dumps({"prompt": "Another", "id": 0}) + "\n")
    before = target.read_bytes()
    with pytest.raises(ValueError, match="were not written from"):
        predict_file(predictor, other, target)
    with pytest.raises(ValueError, match="overwritten by its own predictions"):
        predict_file(predictor, source, source)
    assert target.read_bytes() == before


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("left", [8, 40])
def test_a_target_that_another_model_or_other_settings_began_is_refused(predictor, source, tmp_path, left, suffix):
    target = tmp_path / f"out{suffix}"
    predict_file(predictor, source, target)
    header = 0 if suffix == ".jsonl" else 1
    target.write_bytes(b"".join(target.read_bytes().splitlines(keepends=True)[: left + header]))
    before = target.read_bytes()
    model, tokenizer = predictor.model, predictor.tokenizer

    def refused(words, *, grid=range(5), **settings):
        with pytest.raises(ValueError, match=words):
            predict_file(RegressionPredictor(model, tokenizer, grid, **settings), source, target)

    refused(r'decision \("mean", not "mode"\)', decision="mode")
    refused("renormalize", renormalize=True)
    refused("grid", grid=range(4))
    refused(r"max_length \(null, not 5\)", max_length=5)
    refused("prompt_template", prompt_template="{prompt} out of 4:")
    refused("autocast", autocast="bfloat16")
    adapter = get_peft_model(copy.deepcopy(model), lora())
    with pytest.raises(ValueError, match=r"another weights, base_weights\. Continue"):
        predict_file(RegressionPredictor(adapter, tokenizer, range(5)), source, target)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(1.01)
    refused(r"another weights\. Continue")
    with torch.no_grad():
        weight.div_(1.01)
    model.bfloat16()
    refused("dtype")
    assert target.read_bytes() == before


def test_a_model_moved_or_opened_again_goes_on(model, predictor, source, tmp_path):
    target = tmp_path / "out.jsonl"
    predict_file(predictor, source, target)
    target.write_bytes(b"".join(target.read_bytes().splitlines(keepends=True)[:8]))
    model.rename(tmp_path / "moved")
    opened = RegressionPredictor.from_pretrained(tmp_path / "moved", grid=range(5))
    assert predict_file(opened, source, target, batch_size=3) == 32


def test_a_source_in_another_order_is_refused(predictor, source, tmp_path):
    target = tmp_path / "out.jsonl"
    predict_file(predictor, source, target)
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join([*lines[:2], lines[3], lines[2], *lines[4:]]))
    with pytest.raises(ValueError, match=r"row 2 is another.*Put the rows back in their order"):
        predict_file(predictor, source, target)
    source.write_text("".join(lines[:20]))
    with pytest.raises(ValueError, match="row 20 is another, or is not there"):
        predict_file(predictor, source, target)


def test_a_target_without_a_note_is_gone_on_with_and_that_is_said(predictor, source, tmp_path, caplog):
    target = tmp_path / "out.jsonl"
    predict_file(predictor, source, target)
    target.write_bytes(b"".join(target.read_bytes().splitlines(keepends=True)[:8]))
    (tmp_path / "out.jsonl.made_by.json").unlink()
    assert predict_file(predictor, source, target) == 32
    assert "made_by.json is not beside it" in caplog.text


def test_a_row_that_cannot_be_used_is_named_and_what_came_before_is_kept(predictor, tmp_path):
    source, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in [*PROMPTS[:5], ""]))
    with pytest.raises(ValueError, match="row 5"):
        predict_file(predictor, source, target, chunk_size=2)
    assert len(list(read_rows(target))) == 4
    source.write_text(json.dumps({"text": "no prompt"}) + "\n")
    with pytest.raises(ValueError, match="no `prompt`"):
        predict_file(predictor, source, tmp_path / "new.jsonl")
    source.write_text(json.dumps({"prompt": "a", "prediction": 1}) + "\n")
    with pytest.raises(ValueError, match="'prediction' already"):
        predict_file(predictor, source, tmp_path / "new.jsonl")


def test_a_model_that_gives_no_number(predictor, source, tmp_path):
    torch.nn.init.constant_(predictor.model.lm_head.weight, math.nan)
    predict_file(predictor, source, tmp_path / "out.jsonl")
    assert {row["prediction"] for row in read_rows(tmp_path / "out.jsonl")} == {None}


def test_command_line(model, source, tmp_path, capsys):
    target = tmp_path / "out.csv"
    arguments = ["predict", str(source), str(target), "--model", str(model), "--grid", "0,1,2,3,4"]
    assert main(arguments) == 0
    assert f"40 rows were predicted and written to {target}" in capsys.readouterr().out
    assert len(list(read_rows(target))) == len(PROMPTS)
    assert main(arguments) == 0
    assert "Nothing was predicted" in capsys.readouterr().out
    assert main([*arguments[:-1], "0,one"]) == 1
    assert "The grid '0,one' cannot be read" in capsys.readouterr().err
    assert main(["predict", str(source), str(tmp_path / "no" / "out.csv"), *arguments[3:]]) == 1
    assert "no folder" in capsys.readouterr().err


SLOWLY = """
import sys, time
from raft_peft.cli.command import main
from raft_peft.data.row_files import RowWriter
write = RowWriter.write
def slow(self, rows):
    write(self, rows)
    time.sleep(0.15)
RowWriter.write = slow
sys.exit(main(sys.argv[1:]))
"""


def test_killed_twice_and_started_again_each_row_is_there_once(model, source, tmp_path, capsys):
    """Meanwhile one process writes, and another is told which."""
    target = tmp_path / "out.jsonl"
    arguments = ["predict", str(source), str(target), "--model", str(model), "--grid", "0,1,2,3,4"]
    command = [sys.executable, "-c", SLOWLY, *arguments, "--chunk-size", "1"]
    seen = 0
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as run:
            while run.poll() is None and (not target.is_file() or target.read_bytes().count(b"\n") < seen + 5):
                time.sleep(0.01)
            if seen:
                assert main(arguments) == 1
                assert f"is being written by process {run.pid} on" in capsys.readouterr().err
            run.kill()
        seen = target.read_bytes().count(b"\n")
    assert 5 <= seen < len(PROMPTS)
    assert main(arguments) == 0
    assert [row["id"] for row in read_rows(target)] == list(range(len(PROMPTS)))
