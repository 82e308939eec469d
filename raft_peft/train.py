"""Fine-tuning from the command line: `raft-peft train`, and in several processes with accelerate.

accelerate launch -m raft_peft.train --help
"""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset, IterableDataset, load_dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from raft_peft.data.labels import LabelColumn, with_number
from raft_peft.data.prompt_template import prompt_writer
from raft_peft.data.row_files import read_rows
from raft_peft.grid import NumberGrid
from raft_peft.methods.pretrained import with_dtype
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.options import parse_options
from raft_peft.training.quantization import usual_dtype
from raft_peft.training.trainer import RegressionAwareTrainer

HELP = """\
Fine-tune a language model to predict a number, on rows of a `prompt` and a float `label`.

  raft-peft train --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 \\
      --train_file train.jsonl --eval_file dev.jsonl --output_dir stars-raft
  raft-peft train --model_name_or_path google/gemma-2-2b --load_in_4bit --grid 0..5 --dataset_name nyu-mll/glue \\
      --dataset_config stsb --eval_split validation --output_dir stsb-raft \\
      --prompt_template 'Sentence 1: {sentence1} Sentence 2: {sentence2} Similarity (0-5):'
  accelerate launch --num_processes 2 -m raft_peft.train --config train.yaml

LoRA on all linear layers, unless --use_peft false. Every setting of RegressionAwareConfig and of TRL's ModelConfig is
an option, and may stand in a YAML file (--config). Interrupted, the same command with --resume_from_checkpoint true
goes on from the last checkpoint.
"""


@dataclass
class TrainArguments:
    """What is trained on, and the numbers that are learned.

    Parameters:
        grid: the numbers that the model may answer with, as [`NumberGrid.parse`] reads them.
        train_file, eval_file: JSON Lines or CSV.
        dataset_name, dataset_config, train_split, eval_split: a dataset of the Hub, or a folder.
        prompt_template: the prompt, from the columns of a row in braces; by default the column `prompt`.
    """

    grid: str = field(
        metadata={
            "help": "The numbers that the model may answer with: 1,2,3,4,5 or 0..100 or 0..5..0.5, or with texts of "
            "their own, 0=no,1=yes."
        }
    )
    train_file: str | None = field(default=None, metadata={"help": "The training rows, .jsonl or .csv."})
    eval_file: str | None = field(default=None, metadata={"help": "The evaluation rows, .jsonl or .csv."})
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub, instead of files."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    train_split: str = field(default="train", metadata={"help": "Its split for training."})
    eval_split: str | None = field(default=None, metadata={"help": "Its split for evaluation, if any."})
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "The prompt, from a row's columns in braces, as 'Review: {text} Stars:'. By default the column "
            "`prompt`."
        },
    )

    def __post_init__(self) -> None:
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError("There must be one source of rows: pass either --train_file or --dataset_name.")
        if self.dataset_name is not None and self.eval_file is not None:
            raise ValueError("--eval_file goes with --train_file. For a dataset, pass --eval_split.")
        if self.dataset_name is None and (self.eval_split is not None or self.dataset_config is not None):
            raise ValueError("--eval_split and --dataset_config are for --dataset_name. For files, pass --eval_file.")


# What a row may hold besides its label.
_COLUMNS = ("prompt", "completion", "input_ids", "attention_mask", "tools", "chat_template_kwargs")

# Good for LoRA on one GPU and for a small model on the CPU; each can be set on the command line.
DEFAULTS: dict[str, Any] = {
    "dtype": None,
    "use_bnb_nested_quant": True,
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "report_to": "none",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says, evaluate where there are rows for it, and save."""
    parser = TrlParser(
        (TrainArguments, RegressionAwareConfig, ModelConfig),
        prog="raft-peft train",
        description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**DEFAULTS)
    given, args, model_config = parse_options(parser, arguments)
    train(given, args, model_config)


def train(given: TrainArguments, args: RegressionAwareConfig, model_config: ModelConfig) -> None:
    """The run that the arguments describe.

    Raises:
        ValueError: arguments, rows or a model that cannot be used.
    """
    # A YAML file may hold a list or a mapping
    grid = NumberGrid.parse(given.grid) if isinstance(given.grid, str) else NumberGrid(given.grid)
    datasets = load_rows(given, args.label_column)
    if model_config.dtype is None:
        model_config.dtype = usual_dtype(quantized=model_config.load_in_4bit or model_config.load_in_8bit)
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **with_dtype(args.model_init_kwargs or {}),
    }
    with _mistakes_named(args):
        _run(given, args, model_config, grid, datasets)


@contextmanager
def _mistakes_named(args: RegressionAwareConfig) -> Iterator[None]:
    """Errors of the libraries beneath that an option has caused, as errors of this option.

    Raises:
        ValueError: the message names the option.
    """
    try:
        yield
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None:
            raise
        name = unexpected[1]
        options = [option for option, value in vars(args).items() if isinstance(value, dict) and name in value]
        if not options:
            raise
        raise ValueError(f"--{options[0]} holds {name!r}, and that does not exist: {error}. Correct it.") from error
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise ValueError(str(error.args[0])) from error


def _run(
    given: TrainArguments,
    args: RegressionAwareConfig,
    model_config: ModelConfig,
    grid: NumberGrid,
    datasets: Mapping[str, Dataset | IterableDataset],
) -> None:
    trainer = RegressionAwareTrainer(
        model_config.model_name_or_path,
        args,
        grid=grid,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("eval"),
        quantization_config=get_quantization_config(model_config),  # computes in the model's dtype
        peft_config=get_peft_config(model_config),
    )
    done = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.log_metrics("train", done.metrics)
    trainer.save_metrics("train", done.metrics)
    if "eval" in datasets:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model()
    trainer.accelerator.print(f"The model is in {args.output_dir}.")
    if args.push_to_hub:
        on_hub = given.dataset_name is not None and not Path(given.dataset_name).exists()
        trainer.push_to_hub(dataset_name=given.dataset_name if on_hub else None)
    trainer.end()


def load_rows(given: TrainArguments, label_column: str) -> dict[str, Dataset | IterableDataset]:
    """The rows to train on, under `train`, and those to evaluate on, where there are any, under `eval`.

    Raises:
        ValueError: a file of another format, or a prompt template that does not fit the columns.
        FileNotFoundError: there is no such file.
    """
    write_prompt = prompt_writer(given.prompt_template)
    if given.train_file is not None:
        files = {"train": given.train_file, "eval": given.eval_file}
        return {
            name: _read(path, given.prompt_template, label_column) for name, path in files.items() if path is not None
        }
    splits = {"train": given.train_split, "eval": given.eval_split}
    datasets = {
        name: load_dataset(given.dataset_name, given.dataset_config, split=split)
        for name, split in splits.items()
        if split is not None
    }
    if given.prompt_template is None:
        return datasets
    return {
        name: dataset.map(write_prompt, desc=f"Writing the prompts of the {name} rows")
        for name, dataset in datasets.items()
    }


def _read(path: str, prompt_template: str | None, label_column: str) -> Dataset:
    """The rows of a file as `predict` and `evaluate` read them, and of their columns those that training knows.

    Raises:
        ValueError: there is no column of prompts or of labels, or a column of values of several kinds.
    """
    write_prompt = prompt_writer(prompt_template)
    rows = [write_prompt(with_number(row, label_column)) for row in read_rows(path)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rows and not {"prompt", "input_ids"} & set(names):
        raise ValueError(
            f"{path} has the columns {names}, and no `prompt`. Rename the column of the text, or pass "
            "--prompt_template, such as 'Review: {text} Stars:'."
        )
    if rows and not LabelColumn.of(label_column).is_in(names):
        raise ValueError(
            f"{path} has the columns {names}, and no label in {label_column!r}. Rename the column of the target to "
            f"{label_column!r}, or pass --label_column with its name."
        )
    known = [name for name in names if name in (label_column, *_COLUMNS)]
    columns = {name: [row.get(name) for row in rows] for name in known}
    try:
        return Dataset.from_dict(columns)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        for name, values in columns.items():
            _check_one_kind(path, name, values)
        raise


def _check_one_kind(path: str, name: str, values: Sequence[Any]) -> None:
    """Raise a ValueError that names the first row whose value is of another kind than those before it."""
    if _fit_together(values):
        return
    fit, do_not = 0, len(values)
    while do_not - fit > 1:
        middle = (fit + do_not) // 2
        fit, do_not = (middle, do_not) if _fit_together(values[:middle]) else (fit, middle)
    before = next((value for value in values[:fit] if value is not None), None)
    if before is None:
        raise ValueError(f"{path}: row {fit} has the {name} {values[fit]!r:.80}, which no column of numbers can hold.")
    cure = "Write all prompts as texts, or all as chats." if name == "prompt" else "Write all as the same kind."
    raise ValueError(
        f"{path}: row {fit} has the {name} {values[fit]!r:.80}, which does not fit those of the rows before it, such "
        f"as {before!r:.80}. In training the values of a column are of one kind. {cure}"
    )


def _fit_together(values: Sequence[Any]) -> bool:
    try:
        Dataset.from_dict({"value": list(values)})
    except (pyarrow.ArrowException, TypeError, OverflowError):
        return False
    return True


if __name__ == "__main__":
    main()
