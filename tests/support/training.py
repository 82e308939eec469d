"""Trainers as the tests make them: silent, on the CPU, on few rows."""

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer

GRID = [0, 1, 2, 3, 4]


def config(folder, **options):
    defaults = {
        "report_to": "none",
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "padding_free": False,
        "per_device_eval_batch_size": 3,
    }
    return RegressionAwareConfig(str(folder), **{**defaults, **options})


def make(model, tokenizer, tmp_path, rows=None, *, grid=GRID, options=None, **arguments):
    train = None if rows is None else Dataset.from_list(rows)
    return RegressionAwareTrainer(
        model,
        config(tmp_path, **(options or {})),
        grid=grid,
        processing_class=tokenizer,
        train_dataset=train,
        **arguments,
    )


def baseline_arguments(folder, **options):
    """Of transformers' own `Trainer`, which trains the baselines."""
    return TrainingArguments(
        str(folder / "checkpoints"),
        **{
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 3,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            **options,
        },
    )


def lora(**options):
    return LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"], **options)
