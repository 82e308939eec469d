"""What typed questions give on real data: one model for several questions, and levels as a judge's rubric has them.

    python benchmarks/typed_questions.py --data DATA --output OUTPUT
    python benchmarks/typed_questions.py --data DATA --output OUTPUT --only emobank --seeds 1

`emobank` trains one model on three questions about each text, and three models on one question each, on the same
texts. `judge` asks for a score by a rubric whose levels are the question's criteria, and as a number behind a prompt
that holds the rubric. DATA is that of `results/`. The runs are in OUTPUT, where an interrupted command goes on, and
their figures in docs/results/typed_questions.json, from which docs/results.md is written.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.side_by_side import device_name
from datasets import Dataset
from peft import LoraConfig
from results.figures import read_figures
from results.page import page
from results.tables import SMOLLM2
from results.typed_questions import METRICS
from transformers import HfArgumentParser

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, questions_from_columns
from raft_peft.data.questions.dataset import as_question_dataset
from raft_peft.data.questions.row import QuestionRow
from raft_peft.data.row_sources import read_rows
from raft_peft.methods.saved_folder import installed_versions
from raft_peft.metrics import rmse

PAGE = Path("docs/results.md")

EMOTIONS = ("valence", "arousal", "dominance")
_EMOTION = {"type": "number", "instructions": "How high is the {column}, from 1 to 5?", "criteria": [1, 2, 3, 4, 5]}
_JUDGED = "Instruction: {instruction}\n\nResponse: {response}\n\nReference answer: {reference}"
_PROMPT = _JUDGED + "\n\nRubric: {rubric}\n\nScore of the response from 1 to 5:"
_RUBRIC = re.compile(
    r"\[(.+?)\]\s*" + r"\s*".join(rf"Score {score}: (.+?)" for score in range(1, 6)) + r"\s*$", re.DOTALL
)


@dataclass
class Arguments:
    data: str = field(metadata={"help": "Folder of the rows."})
    output: str = field(metadata={"help": "Folder of the runs. If it holds some, they are not done again."})
    model: str = field(default=SMOLLM2, metadata={"help": "Folder of the language model, if it is not of the Hub."})
    only: list[str] | None = field(default=None, metadata={"help": "emobank or judge alone."})
    seeds: int = field(default=3, metadata={"help": "Runs of each way."})
    texts: int = field(default=3000, metadata={"help": "Texts of EmoBank to train on, once each."})
    test_texts: int = field(default=500, metadata={"help": "Texts of EmoBank for the test, at most."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of every run."})


@dataclass(frozen=True)
class Way:
    """A way to train and ask.

    Attributes:
        rows: of training and of the test, from the user's folder.
        settings: of the trainer, where they are its own.
        grid: numbers of plain rows; None for questions.
    """

    rows: Callable[[Arguments], tuple[Dataset, Dataset]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[float, ...] | None = None


def emobank(*columns: str) -> Way:
    """Questions about the columns of EmoBank, all of a text together."""

    def rows(args: Arguments) -> tuple[Dataset, Dataset]:
        train, test = (
            list(read_rows(Path(args.data) / "emobank" / f"{name}.jsonl")) for name in ("train", "validation")
        )
        made = []
        for texts, most in ((train, args.texts), (test, args.test_texts)):
            some = Dataset.from_list(texts).shuffle(seed=0).select(range(min(most, len(texts))))
            made.append(questions_from_columns(some, columns, prompt="{text}", question=_EMOTION))
        return made[0], made[1]

    return Way(rows, {"per_device_train_batch_size": 8, "num_train_epochs": 1})


def judge(write: Callable[[dict[str, Any]], dict[str, Any]], **options: Any) -> Way:
    """The rows of the judge, written by a function."""

    def rows(args: Arguments) -> tuple[Dataset, Dataset]:
        train, test = (
            [write(row) for row in read_rows(Path(args.data) / "judge" / f"{name}.jsonl")]
            for name in ("train", "test")
        )
        if "grid" in options:
            return Dataset.from_list(train), Dataset.from_list(test)
        return as_question_dataset(train, "train"), as_question_dataset(test, "test")

    # Its prompts have 800 tokens, so that eight at once would take too much memory.
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
    return Way(rows, {**settings, "per_device_eval_batch_size": 2, "max_length": 2048}, **options)


def as_score_question(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the judge as a `score` question, with the levels of its rubric as criteria."""
    found = _RUBRIC.fullmatch(row["rubric"].strip())
    if found is None:
        raise ValueError(f"The rubric of row {row['id']} has other parts than a question and five scores.")
    instructions, *levels = (" ".join(part.split()) for part in found.groups())
    return {
        "state": _JUDGED.format(**row),
        "questions": {"quality": {"type": "score", "instructions": instructions, "criteria": levels}},
        "targets": {"quality": [rating - 1 for rating in row["ratings"]]},
    }


def as_prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": _PROMPT.format(**row), "label": [float(rating) for rating in row["ratings"]]}


TASKS: dict[str, dict[str, Way]] = {
    "emobank": {"together": emobank(*EMOTIONS), **{one: emobank(one) for one in EMOTIONS}},
    "judge": {"score question": judge(as_score_question), "prompt": judge(as_prompt, grid=(1, 2, 3, 4, 5))},
}


def main(args: Arguments) -> None:
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for task in args.only or TASKS:
        for seed in range(args.seeds):
            for name, way in TASKS[task].items():
                file = run_file(output, task, name, seed)
                if not file.exists():
                    file.write_text(json.dumps(run(args, way, seed), indent=1) + "\n", encoding="utf-8")
                    write_page(args, output)


def run(args: Arguments, way: Way, seed: int) -> dict[str, Any]:
    """The figures of one run: metrics of a constant, and before and after training, tokens and seconds."""
    train, test = way.rows(args)
    settings = RegressionAwareConfig(
        str(Path(args.output) / "last-run"),
        distribution_loss="soft_ce",
        learning_rate=args.learning_rate,
        gradient_checkpointing=False,
        padding_free=True,
        seed=seed,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_steps=25,
        disable_tqdm=True,
        **way.settings,
    )
    trainer = RegressionAwareTrainer(
        args.model,
        settings,
        grid=way.grid,
        train_dataset=train,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    # Adapters start as nothing, so that before training all seeds are one model.
    before = metrics(trainer, way, test) if seed == 0 else None
    computed = 0

    def count(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
        nonlocal computed
        computed += inputs[0].numel()

    hook = trainer.model.get_input_embeddings().register_forward_hook(count)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    hook.remove()
    return {
        "rows": len(train),
        "test_rows": len(test),
        "constant": constant(way, train, test),
        "before": before,
        "after": metrics(trainer, way, test),
        "tokens": computed,
        "seconds": seconds,
    }


def metrics(trainer: RegressionAwareTrainer, way: Way, test: Dataset) -> dict[str, dict[str, float]]:
    """Of each question, or of the one number of plain rows."""
    found = trainer.evaluate(test)
    of_each = {"quality": "eval_"} if way.grid else {one: f"eval_{one}_" for one in json.loads(test[0]["questions"])}
    return {one: {metric: found[f"{prefix}{metric}"] for metric in METRICS} for one, prefix in of_each.items()}


def constant(way: Way, train: Dataset, test: Dataset) -> dict[str, float]:
    """The RMSE of the mean of the training targets, of each question."""
    means = [targets_of(way, rows) for rows in (train, test)]
    return {
        one: rmse(np.full(len(test), np.mean([row[one] for row in means[0]])), [row[one] for row in means[1]])
        for one in means[0][0]
    }


def targets_of(way: Way, rows: Dataset) -> list[dict[str, float]]:
    """The means of the targets of each row."""
    if way.grid is not None:
        return [{"quality": float(np.mean(label))} for label in rows["label"]]
    return [{one: target.mean for one, target in QuestionRow.of(row).targets.items()} for row in rows]


def write_page(args: Arguments, output: Path) -> None:
    """Write the figures of all runs that are done, and the page of results with them."""
    runs = [
        {"task": task, "way": way, "seed": seed, **json.loads(file.read_text(encoding="utf-8"))}
        for task, ways in TASKS.items()
        for way in ways
        for seed in range(args.seeds)
        if (file := run_file(output, task, way, seed)).exists()
    ]
    figures = {
        "model": SMOLLM2,
        "learning_rate": args.learning_rate,
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": installed_versions(),
        "runs": runs,
    }
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "typed_questions.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(read_figures(folder)), encoding="utf-8")


def run_file(output: Path, task: str, way: str, seed: int) -> Path:
    return output / f"{task}-{way.replace(' ', '_')}-{seed}.json"


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
