"""Which loss gives a distribution that can be believed, and what it costs the mean.

    python benchmarks/distributions.py --data SENTIMENT/tweets --output runs/tweets
    python benchmarks/distributions.py --data STSB --output runs/stsb

Every method trains the same model on the same rows by one recipe (LoRA), once for each seed. Its distributions on
held-out rows and on test rows are kept in the folder of `--output`, where an interrupted run goes on, and from them a
table is made. `--data` is a folder of `train.jsonl` and `validation.jsonl` with `text` and `ratings` from -4 to 4, or
of STS-B's `train.csv` and `dev.csv`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import HfArgumentParser

from raft_peft import (
    GridDistribution,
    NumberGrid,
    RegressionAwareConfig,
    RegressionAwareTrainer,
    RegressionPredictor,
    decisions,
)
from raft_peft.compare.compared_method import ComparedMethod, split_methods
from raft_peft.data.ratings import Ratings, rating_tensors
from raft_peft.losses.label_shares import mean_two_hot
from raft_peft.metrics import distribution_metrics, interval_metrics, pearson, rmse
from raft_peft.prediction.calibrating.fitting import calibration_of
from raft_peft.tasks.stsb import load_stsb

_PROMPT = "Text: {text}\nSentiment from -4 (most negative) to 4 (most positive):"
_METHODS = "raft,crps,soft_ce,raft:distribution_loss=crps,raft:distribution_loss=soft_ce,ce,mbr:renormalize=true"

_COLUMNS = (
    *("RMSE", "Pearson", "RMSE of the median", "mass", "temperature", "CRPS", "calibration error"),
    *("distance to raters", "constant: coverage", "width", "adaptive: coverage", "width of adaptive"),
)


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
    text = table(args, rows, grid)
    (output / "table.md").write_text(text, encoding="utf-8")
    print(text)


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
    # Read as probabilities, also where the method would write text.
    predictor = RegressionPredictor(
        trainer.model,
        trainer.processing_class,
        grid,
        method="rail" if method.name == "ce" else method.name,
        autocast="bfloat16" if settings.bf16 else None,
        **({} if method.name == "ce" else method.options),
    )
    found = {"values": predictor.readout.values.numpy()}
    for name in ("held_out", "test"):
        found[name] = predictor.predict_distribution(rows[name]["prompt"], batch_size=16).log_probs.numpy()
    return found


def table(args: Arguments, rows: dict[str, Dataset], grid: NumberGrid) -> str:
    """A line for each method, of means over the runs that there are, and their standard deviation for the RMSE."""
    lines = ["| " + " | ".join(["method", *_COLUMNS, "runs"]) + " |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for method in map(ComparedMethod.parse, split_methods(args.methods)):
        files = [Path(args.output) / f"{method.slug}-{seed}.npz" for seed in range(args.seeds)]
        runs = [figures(np.load(file), rows, renormalize=method.renormalizes(grid)) for file in files if file.exists()]
        if not runs:
            continue
        cells = [f"{np.mean([run[name] for run in runs]):.3f}" for name in _COLUMNS]
        if len(runs) > 1:
            cells[0] += f" ± {np.std([run['RMSE'] for run in runs], ddof=1):.3f}"
        lines.append("| " + " | ".join([f"`{method.label}`", *cells, str(len(runs))]) + " |")
    return "\n".join(lines) + "\n"


def figures(found: Mapping[str, np.ndarray], rows: dict[str, Dataset], *, renormalize: bool) -> dict[str, float]:
    """The figures of one run, by the columns of the table."""
    values = torch.tensor(found["values"])
    held_out, test = (GridDistribution(torch.tensor(found[name]), values) for name in ("held_out", "test"))
    held_out_labels, labels = (
        np.array([np.mean(label) for label in rows[name]["label"]]) for name in ("held_out", "test")
    )
    predicted, predictions = (decisions.mean(one, renormalize=renormalize).numpy() for one in (held_out, test))
    ratings = _ratings(rows["test"]["label"])
    shares = mean_two_hot(*rating_tensors(labels.tolist(), ratings), values)
    rated = [one is not None for one in ratings]
    measured = distribution_metrics(test.log_probs, found["values"], shares, rated)
    calibration = calibration_of(
        predicted, held_out_labels, held_out, found["values"], {}, ratings=_ratings(rows["held_out"]["label"])
    )
    intervals = {}
    for kind in ("constant", "adaptive"):
        ends = replace(calibration, kind=kind).intervals(predictions, 0.9, test)
        intervals[kind] = interval_metrics(*ends, labels)
    return {
        "RMSE": rmse(predictions, labels),
        "Pearson": pearson(predictions, labels),
        "RMSE of the median": rmse(decisions.median(test).numpy(), labels),
        "mass": test.mass.mean().item(),
        "temperature": calibration.temperature or math.nan,
        "CRPS": measured["crps"],
        "calibration error": measured["calibration_error"],
        "distance to raters": measured.get("rater_distance", math.nan),
        "constant: coverage": intervals["constant"]["coverage"],
        "width": intervals["constant"]["mean_width"],
        "adaptive: coverage": intervals["adaptive"]["coverage"],
        "width of adaptive": intervals["adaptive"]["mean_width"],
    }


def _ratings(labels: Sequence[float | list[float]]) -> list[Ratings | None]:
    return [Ratings.of(label) if isinstance(label, list) else None for label in labels]


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
