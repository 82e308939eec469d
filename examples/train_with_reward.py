"""Train a policy with a trained folder as its reward, by TRL's GRPOTrainer or RLOOTrainer.

    python examples/train_with_reward.py --reward judge-raft --policy Qwen/Qwen3-0.6B --data_files "prompts/*.jsonl" \\
        --output_dir policy

The reward of a completion is the number that the folder predicts of it. It may have been trained on scores, on
preferences (`chosen`, `rejected`) or on both. Its prompt is written by the prompt template of its training, from the
columns of the rows, where `{prompt}` and `{completion}` are what the policy was given and has written; `--template`
sets another. The rows have a `prompt` each (text, or a list of chat messages) and are JSON Lines, CSV or Parquet.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from raft_peft import RegressionPredictor

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TRAINERS: dict[str, Any] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


def train(
    reward: str, policy: str, rows: Dataset, output_dir: str, *, template: str | None, algorithm: str, **options: Any
) -> Any:
    """The trainer of the policy, after its training.

    Args:
        reward: folder or Hub repository of a trained model.
        policy: folder or Hub repository of the model that is trained by it.
        rows: with a `prompt` each.
        output_dir: where the policy is saved.
        template: of the reward's prompt; None for that of its training.
        algorithm: grpo or rloo.
        options: of `GRPOConfig` or `RLOOConfig`.
    """
    make_config, make_trainer = TRAINERS[algorithm]
    on_cpu = not torch.accelerator.is_available()
    trainer = make_trainer(
        policy,
        reward_funcs=RegressionPredictor.from_pretrained(reward).as_reward(template),
        args=make_config(output_dir, use_cpu=on_cpu, bf16=not on_cpu, report_to="none", **options),
        train_dataset=rows,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def main(data_files: str, **options: Any) -> None:
    suffix = Path(data_files).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{data_files!r} ends in {suffix!r}. Give files that end in one of {', '.join(FORMATS)}.")
    trainer = train(rows=load_dataset(FORMATS[suffix], data_files=data_files, split="train"), **options)
    for entry in trainer.state.log_history:
        if "rewards/raft_reward/mean" in entry:
            print(f"Step {entry['step']}: mean reward {entry['rewards/raft_reward/mean']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help="Folder or Hub repository of a trained model.")
    parser.add_argument("--policy", required=True, help="The model that is trained by this reward.")
    parser.add_argument("--data_files", required=True, help="A file or a pattern of files, of one format.")
    parser.add_argument("--output_dir", required=True, help="Where the trained policy is saved.")
    parser.add_argument("--template", help="Prompt of the reward, by default that of its training.")
    parser.add_argument("--algorithm", choices=TRAINERS, default="grpo", help="Of TRL: GRPOTrainer or RLOOTrainer.")
    parser.add_argument("--max_steps", type=int, default=100, help="Steps of training.")
    parser.add_argument("--learning_rate", type=float, default=1e-6, help="Of the policy.")
    parser.add_argument("--num_generations", type=int, default=8, help="Completions of each prompt, compared.")
    parser.add_argument("--per_device_train_batch_size", type=int, default=8, help="Completions of a batch.")
    parser.add_argument("--max_completion_length", type=int, default=256, help="Tokens of a completion.")
    parser.add_argument("--logging_steps", type=int, default=10, help="Steps between two printed rewards.")
    main(**vars(parser.parse_args()))
