"""Which loss gives a distribution that can be believed, and what it costs the mean.

    python benchmarks/distributions.py --data SENTIMENT/tweets --output runs/tweets
    python benchmarks/distributions.py --data STSB --output runs/stsb

Every method trains the same model on the same rows by one recipe (LoRA), once for each seed. Its distributions on
held-out rows and on test rows are kept in the folder of `--output`, where an interrupted run goes on, and from them a
table is made. `--data` is a folder of `train.jsonl` and `validation.jsonl` with `text` and `ratings` from -4 to 4, or
of STS-B's `train.csv` and `dev.csv`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from transformers import HfArgumentParser

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionAwareTrainer
from raft_peft.compare.compared_method import ComparedMethod, split_methods
from raft_peft.tasks.stsb import load_stsb

_PROMPT = "Text: {text}\nSentiment from -4 (most negative) to 4 (most positive):"
_METHODS = "raft,crps,soft_ce,raft:distribution_loss=crps,raft:distribution_loss=soft_ce,ce,mbr:renormalize=true"


@dataclass
class Arguments:
    data: str = field(metadata={"help": "Folder of the rows."})
    output: str = field(metadata={"help": "Folder of the runs and the table."})
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    methods: str = field(default=_METHODS, metadata={"help": "Methods, as `raft-peft compare --methods` takes them."})
    seeds: int = field(default=3, metadata={"help": "Runs of each method."})
    train_rows: int = field(default=1000, metadata={"help": "Rows to train on, once each."})
    held_out_rows: int = field(default=400, metadata={"help": "Rows to calibrate on."})
    test_rows: int = field(default=750, metadata={"help": "Rows of the test, at most."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of every method."})


def main(args: Arguments) -> None:
    rows, grid = read_rows(args)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for method in map(ComparedMethod.parse, split_methods(args.methods)):
            found = output / f"{method.slug}-{seed}.npz"
            if not found.exists():
                np.savez(found, **distributions(args, method, seed, rows, grid))


def read_rows(args: Arguments) -> tuple[dict[str, Dataset], NumberGrid]:
    """The rows to train on, to calibrate on and of the test, and the grid of their labels."""
    if (Path(args.data) / "train.jsonl").exists():
        train, test = (_rated(Path(args.data) / f"{name}.jsonl") for name in ("train", "validation"))
        grid = NumberGrid(range(-4, 5))
    else:
        splits = load_stsb(args.data, seed=0)
        train, test, grid = splits["train"], splits["test"], NumberGrid(range(6))
    train, test = train.shuffle(seed=0), test.shuffle(seed=0)
    held_out = train.select(range(args.held_out_rows))
    rest = train.select(range(args.held_out_rows, min(len(train), args.held_out_rows + args.train_rows)))
    return {"train": rest, "held_out": held_out, "test": test.select(range(min(len(test), args.test_rows)))}, grid


def _rated(path: Path) -> Dataset:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([{"prompt": _PROMPT.format(**row), "label": row["ratings"]} for row in rows])


def distributions(
    args: Arguments, method: ComparedMethod, seed: int, rows: dict[str, Dataset], grid: NumberGrid
) -> dict[str, np.ndarray]:
    """The log-probabilities of the grid on held-out and test rows, after training by a method."""
    train = rows["train"]
    if method.name == "ce":
        # It trains on the text of the label, and between the numbers of the grid there is none.
        train = train.map(lambda row: {"label": float(round(np.mean(row["label"])))})
    settings = RegressionAwareConfig(
        str(Path(args.output) / "last-run"),
        method=method.name,
        **method.options,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        learning_rate=args.learning_rate,
        gradient_checkpointing=False,
        padding_free=method.name != "ce",
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_steps=25,
        disable_tqdm=True,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = RegressionAwareTrainer(args.model, settings, grid=grid, train_dataset=train, peft_config=lora)
    trainer.train()
    found = {"values": trainer.readout.values.numpy()}
    for name in ("held_out", "test"):
        encoder_rows = rows[name].select_columns("prompt")
        found[name] = trainer.predict(encoder_rows).distribution.log_probs.numpy()
    return found


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
