"""Two processes on the CPU: every head trains in step, and predictions come back whole and in order on both."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

METHODS = ["raft", "raft several", "learnable_raft", "logits_mlp", "pooled", "ce"]

SCRIPT = """
import json, sys
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from raft_peft import RegressionAwareConfig, RegressionAwareTrainer

folder, methods = sys.argv[1], sys.argv[2].split(",")
rows = Dataset.from_list(
    [{"prompt": f"Rate item {i * 3} from 0 to 4, the score is", "label": (i % 9) / 2} for i in range(11)]
)
for method in methods:
    trainer = RegressionAwareTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        RegressionAwareConfig(
            f"{folder}/{method}", method=method.split()[0], use_cpu=True, bf16=False, max_steps=3, learning_rate=1e-2,
            per_device_train_batch_size=2, per_device_eval_batch_size=2, report_to="none", save_strategy="no",
            gradient_checkpointing=method != "raft", disable_tqdm=True,
        ),
        grid=[0, 0.5, 1, 4, 10] if "several" in method else range(5),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=rows,
    )
    trainer.train()
    weights = [parameter.double().sum().item() for parameter in trainer.model.parameters()]
    predictions = trainer.predict(rows).predictions.tolist()
    trainer.save_model()
    rank = trainer.args.process_index
    with open(f"{folder}/{method}-{rank}.json", "w") as file:
        json.dump({"weights": weights, "predictions": predictions}, file)
"""


@pytest.fixture
def model_folder(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_two_processes(model_folder):
    from raft_peft import RegressionPredictor

    script = model_folder / "run.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
            str(model_folder),
            ",".join(METHODS),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    prompts = [f"Rate item {index * 3} from 0 to 4, the score is" for index in range(11)]
    for method in METHODS:
        first, second = (json.loads((model_folder / f"{method}-{rank}.json").read_text()) for rank in (0, 1))
        assert first["weights"] == second["weights"], method
        assert first["predictions"] == second["predictions"]
        alone = RegressionPredictor.from_pretrained(model_folder / method).predict(prompts)
        np.testing.assert_allclose(first["predictions"], alone, atol=1e-5)
