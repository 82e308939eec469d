"""Training that is killed at random moments, and goes on as if it had not been."""

import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft_peft import RegressionPredictor
from raft_peft.training.fault_tolerance.checkpoints import last_whole_checkpoint, why_not_whole

STEPS = 24


def train(base, folder, begun):
    """A run with dropout, ragged accumulation and evaluations, as far as it comes."""
    from support.training import config, lora

    from raft_peft import RegressionAwareTrainer

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # A process that is killed so often has no time for the pictures of model cards and the garbage of its libraries.
    sys.modules["matplotlib"] = None
    gc.freeze()
    rows = [{"prompt": f"Rate item {3 * n} from 0 to 4, the score is", "label": (n % 9) / 2} for n in range(29)]
    torch.manual_seed(0)
    trainer = RegressionAwareTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        config(
            folder,
            method="logits_mlp",
            max_steps=STEPS,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="rmse",
        ),
        grid=range(5),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:7]),
        peft_config=lora(),
    )
    begun.set()
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    (folder / "metrics.json").write_text(json.dumps(trainer.evaluate()))


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raft_peft.training.trainer", "raft_peft.prediction.predictor"])
    return context


@pytest.fixture
def base(tiny_llama, tokenizer, tmp_path):
    tiny_llama.config.attention_dropout = 0.1
    tiny_llama.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def start(processes, base, folder):
    """A process that has just begun to train."""
    begun = processes.Event()
    process = processes.Process(target=train, args=(base, folder, begun))
    process.start()
    assert begun.wait(120)
    return process


def run_whole(processes, base, folder):
    """A run that is not disturbed, and the seconds that its training took."""
    process = start(processes, base, folder)
    started = time.perf_counter()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started


def wait_for_a_checkpoint(folder, process):
    """Until the next checkpoint is begun, or the run has ended."""
    before = set(folder.glob("checkpoint-*"))
    while process.is_alive() and set(folder.glob("checkpoint-*")) <= before:
        time.sleep(0.0005)


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_runs_end_as_one_that_was_not(kills, processes, base, tmp_path):
    """At random moments, of which every other lies behind the beginning of a checkpoint."""
    duration = run_whole(processes, base, tmp_path / "whole")
    folder = tmp_path / "killed"
    random.seed(kills)
    survived, ended, half_written, went_on_from = 0, 0, 0, set()
    while survived < kills:
        process = start(processes, base, folder)
        if survived % 2:
            wait_for_a_checkpoint(folder, process)
            time.sleep(random.uniform(0, 0.02))
        else:
            time.sleep(random.uniform(0, 0.6) * duration)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it came to its end before; another begins
            folder.rename(tmp_path / f"ended-{ended}")
            ended += 1
            continue
        assert process.exitcode == -signal.SIGKILL
        survived += 1
        went_on_from.add(last_whole_checkpoint(folder))
        half_written += any(why_not_whole(path) for path in folder.glob("checkpoint-*"))
    run_whole(processes, base, folder)
    print(
        f"{survived} kills, {half_written} of them within a checkpoint; training went on from {len(went_on_from)} "
        f"different steps and came to its end {ended + 1} times"
    )
    assert half_written > 0
    for one in [folder, *tmp_path.glob("ended-*")]:
        assert_same(tmp_path / "whole", one)


def assert_same(one, other):
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for name in ("eval_loss", "eval_rmse", "eval_pearson"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6)
    prompts = [f"Rate item {3 * n} from 0 to 4, the score is" for n in range(29)]
    models = [RegressionPredictor.from_pretrained(folder).model for folder in (one, other)]
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    numbers = [torch.tensor(RegressionPredictor.from_pretrained(folder).predict(prompts)) for folder in (one, other)]
    torch.testing.assert_close(*numbers, rtol=0, atol=1e-6)
