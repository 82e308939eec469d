"""The examples run from the command line, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
