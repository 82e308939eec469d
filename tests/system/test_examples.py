"""The examples run from the command line, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trl import ModelConfig, TrlParser

from examples import judge_with_reasons
from raft_peft import RegressionAwareConfig, RegressionPredictor
from raft_peft.forward.writing import Written

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model_folder(tiny_llama, tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_finetune_stsb(model_folder, tmp_path):
    for name, rows in (("train", 40), ("dev", 12)):
        lines = [f"the item {i},a cup of tea,{i % 11 / 2}\n" for i in range(rows)]
        (tmp_path / f"{name}.csv").write_text("".join(lines))
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "examples" / "finetune_stsb.py")),
        *("--model_name_or_path", str(model_folder), "--dataset_path", str(tmp_path)),
        *("--max_train_samples", "8", "--max_eval_samples", "10", "--lora_r", "4", "--renormalize"),
        *("--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch", "--metric_for_best_model", "rmse"),
        *("--load_best_model_at_end", "--save_strategy", "epoch"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "10 test pairs" in run.stdout
    assert "zero-shot RAIL" in run.stdout
    assert "RAFT fine-tuned" in run.stdout
    assert (tmp_path / "out" / "raft_config.json").is_file()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_judge_with_reasons(model_folder, tmp_path, monkeypatch, capsys):
    def write(model, tokenizer, prompts, *, count, **_):
        return [[Written("Right.", True), Written("It goes on and", False)][:count] for _ in prompts]

    # A model of random weights never ends.
    monkeypatch.setattr("raft_peft.prediction.reasoning.writer.write_texts", write)
    parser = TrlParser((judge_with_reasons.ScriptArguments, RegressionAwareConfig, ModelConfig))
    parser.set_defaults(**judge_with_reasons.DEFAULTS)
    options = {
        "model_name_or_path": model_folder,
        "output_dir": tmp_path / "out",
        "max_length": 64,
        "max_steps": 1,
        "own_reasonings": 2,
        "test_reasonings": 2,
        "keep_within": 5,
        "use_cpu": True,
        "lora_r": 2,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    judge_with_reasons.main(*parser.parse_args_and_config(words))
    said = capsys.readouterr().out
    assert "18 feedbacks; 6 lost a last sentence that told the score, 0 were dropped." in said
    assert "6 test rows" in said and "reasons of others, 2" in said and "reasons of its own, 2" in said
    own = judge_with_reasons.read(tmp_path / "out" / "own_reasonings.jsonl")
    assert [row["reasoning"] for row in own] == [["Right."]] * 6
    assert RegressionPredictor.from_pretrained(tmp_path / "out" / "second").reads_reasonings
