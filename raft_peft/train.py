"""Fine-tuning from the command line: `raft-peft train`, and in several processes with accelerate.

accelerate launch -m raft_peft.train --help
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config, get_quantization_config

from raft_peft.console import run_command
from raft_peft.data.prompt_template import PROMPT
from raft_peft.data.questions.form import QuestionForm, is_from_table, read_questions
from raft_peft.data.questions.question import Question
from raft_peft.data.questions.row import holds_questions
from raft_peft.data.row_datasets import read_dataset
from raft_peft.data.row_sources import FORMATS_IN_WORDS, named_rows, read_rows
from raft_peft.grid import NumberGrid
from raft_peft.grid.number_grid import GRID_HELP
from raft_peft.methods.pretrained import with_dtype
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.datasets import AnyDataset
from raft_peft.training.options import options_parser, parse_options
from raft_peft.training.quantization import usual_dtype
from raft_peft.training.questions.datasets import refuse_settings_of_numbers
from raft_peft.training.recipes import RECIPES, Recipe, check_warmup, get_recipe
from raft_peft.training.speed import choice
from raft_peft.training.trainer import RegressionAwareTrainer

HELP = """\
Fine-tune a language model to predict a number, on rows of a `prompt` and a float `label`, or of which of two texts is
better, `chosen` and `rejected`; or to answer typed questions, on rows of a `state`, `questions` and `targets`, without
a grid.

  raft-peft train --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --grid 1,2,3,4,5 \\
      --train_file train.jsonl --eval_file dev.jsonl --output_dir stars-raft
  raft-peft train --model_name_or_path google/gemma-2-2b --load_in_4bit --grid 0..5 --dataset_name nyu-mll/glue \\
      --dataset_config stsb --eval_split validation --output_dir stsb-raft \\
      --prompt_template 'Sentence 1: {sentence1} Sentence 2: {sentence2} Similarity (0-5):'
  accelerate launch --num_processes 2 -m raft_peft.train --config train.yaml

By default LoRA is trained on all linear layers (--use_peft false: all weights). Every setting of RegressionAwareConfig
(with those of Trainer and TRL) and of TRL's ModelConfig is an option, and --help-all lists them. A YAML file can hold
them (--config). If training is interrupted, the same command with --resume_from_checkpoint true continues from the
last checkpoint.
"""


@dataclass
class TrainArguments:
    """What is trained on, and the numbers that are learned.

    Parameters:
        grid: the numbers that the model may answer with, as [`NumberGrid.parse`] reads them; None for rows of typed
            questions.
        questions: a file of typed questions, as [`read_questions`] reads it; None where rows bring their own.
        train_file, eval_file: as [`read_rows`] takes them.
        dataset_name, dataset_config, train_split, eval_split: a dataset of the Hub, or a folder.
        recipe: a named way to train (`raft_peft.training.recipes`), which sets the defaults of the other options.
    """

    grid: str | None = field(default=None, metadata={"help": f"{GRID_HELP}."})
    questions: str | None = field(
        default=None,
        metadata={
            "help": "Instead of the grid: a JSON file of typed questions, {id: {type, instructions, criteria}}, for "
            "rows of a `state` and `targets` that bring none."
        },
    )
    train_file: str | None = field(default=None, metadata={"help": f"The training rows: {FORMATS_IN_WORDS}."})
    eval_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "The evaluation rows, in the same formats; or several files with names: dev=a.csv hard=b.csv."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub, instead of files."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset, if any."})
    train_split: str = field(default="train", metadata={"help": "Split of the dataset for training."})
    eval_split: str | None = field(default=None, metadata={"help": "Split of the dataset for evaluation."})
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "A named way to train. It sets defaults, which other options override. "
            + "; ".join(f"{name}: {recipe.description}" for name, recipe in RECIPES.items())
        },
    )

    def __post_init__(self) -> None:
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError("There must be one source of rows: pass either --train_file or --dataset_name.")
        if self.dataset_name is not None and self.eval_file is not None:
            raise ValueError("--eval_file goes with --train_file. For a dataset, pass --eval_split.")
        if self.dataset_name is None and (self.eval_split is not None or self.dataset_config is not None):
            raise ValueError("--eval_split and --dataset_config are for --dataset_name. For files, pass --eval_file.")


# Good for LoRA on one GPU and for a small model on the CPU; each can be set on the command line.
DEFAULTS: dict[str, Any] = {
    "dtype": None,
    "use_bnb_nested_quant": True,
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "report_to": "none",
}


_OF_ROWS = ["label_column", "weight_by_ratings", "prompt_template", "chat", "system"]

_OFTEN_SET = [
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "bf16",
    "gradient_checkpointing",
    "padding_free",
    "use_peft",
    "lora_r",
    "load_in_4bit",
    "eval_strategy",
    "save_strategy",
    "load_best_model_at_end",
    "metric_for_best_model",
    "resume_from_checkpoint",
    "report_to",
    "seed",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says, and return the exit code, see `run_command`."""
    return run_command("train", sys.argv[1:] if arguments is None else arguments, make_parser, run)


def make_parser(defaults: Mapping[str, Any] | None = None) -> TrlParser:
    """The parser of all options of a training run, with defaults of a recipe."""
    of_trainer = {one.name for one in fields(SFTConfig)}
    return options_parser(
        (TrainArguments, RegressionAwareConfig, ModelConfig),
        {
            "what is trained, and on what": [
                "model_name_or_path",
                *(one.name for one in fields(TrainArguments)),
                *_OF_ROWS,
            ],
            "how numbers are read and trained": [
                one.name for one in fields(RegressionAwareConfig) if one.name not in (*of_trainer, *_OF_ROWS)
            ],
            "often set (--help-all shows all)": _OFTEN_SET,
        },
        {**DEFAULTS, **(defaults or {})},
        prog="raft-peft train",
        usage="raft-peft train --model_name_or_path MODEL (--grid GRID | --questions FILE) --train_file FILE "
        "--output_dir FOLDER [options]",
        description=HELP,
    )


def run(parser: TrlParser, words: Sequence[str]) -> None:
    """Train as the words of a command line say, evaluate where there are rows for it, and save."""
    given, args, model_config = parse_options(parser, words)
    if given.recipe is not None:
        # The recipe may stand in the YAML file, so that it is known only now.
        parser = make_parser(get_recipe(given.recipe).training_options())
        given, args, model_config = parse_options(parser, words)
    train(given, args, model_config)


def train(given: TrainArguments, args: RegressionAwareConfig, model_config: ModelConfig) -> None:
    """The run that the arguments describe.

    Raises:
        ValueError: arguments, rows or a model that cannot be used.
    """
    # YAML has a list, a mapping or, of one number, that number.
    numbers = str(given.grid) if isinstance(given.grid, int | float) else given.grid
    grid = NumberGrid.parse(numbers) if isinstance(numbers, str) else numbers and NumberGrid(numbers)
    train_rows, eval_rows = load_rows(given, args)
    if model_config.dtype is None:
        model_config.dtype = usual_dtype(quantized=model_config.load_in_4bit or model_config.load_in_8bit)
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **with_dtype(args.model_init_kwargs or {}),
    }
    if given.recipe is not None:
        _follow(get_recipe(given.recipe), args, model_config, has_eval_rows=bool(eval_rows))
    with _mistakes_named(args):
        _run(given, args, model_config, grid, train_rows, eval_rows)


def _follow(recipe: Recipe, args: RegressionAwareConfig, model_config: ModelConfig, *, has_eval_rows: bool) -> None:
    """Set what of a recipe depends on other settings.

    Raises:
        ValueError: the best step is to be kept, and there are no rows to find it by; or the warm-up takes all steps.
    """
    check_warmup(args.warmup_steps, args.max_steps)
    if not has_eval_rows and args.load_best_model_at_end:
        raise ValueError(
            "The recipe keeps the best step on validation. Pass validation rows with --eval_file or --eval_split, or "
            "keep the last step: --load_best_model_at_end false."
        )
    if not has_eval_rows:
        args.eval_strategy = "no"
    if args.lr_scheduler_type == recipe.arguments["lr_scheduler_type"] and args.lr_scheduler_kwargs is None:
        args.lr_scheduler_kwargs = recipe.scheduler_options(args.learning_rate)
    dropout = recipe.model_options(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        trust_remote_code=args.trust_remote_code,
    )
    args.model_init_kwargs = {**dropout, **(args.model_init_kwargs or {})}
    if args.learning_rate in recipe.learning_rates and args.process_index == 0:
        rates = ", ".join(f"{rate:g}" for rate in recipe.learning_rates)
        print(f"The learning rate is {args.learning_rate:g}, one of {rates}. raft-peft compare tries them all.")


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
        raise ValueError(
            f"--{options[0]} holds {name!r}, which does not exist: {error}. Correct the name or leave it out."
        ) from error
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise ValueError(str(error.args[0])) from error


def _run(
    given: TrainArguments,
    args: RegressionAwareConfig,
    model_config: ModelConfig,
    grid: NumberGrid | None,
    train_rows: AnyDataset,
    eval_rows: Mapping[str, AnyDataset],
) -> None:
    with _printed(choice.logger):
        trainer = RegressionAwareTrainer(
            model_config.model_name_or_path,
            args,
            grid=grid,
            train_dataset=train_rows,
            # One without a name has the metrics eval_rmse and so on, the others eval_NAME_rmse.
            eval_dataset=eval_rows.get("eval", dict(eval_rows) or None),
            quantization_config=get_quantization_config(model_config),  # computes in the model's dtype
            peft_config=get_peft_config(model_config),
        )
    done = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.log_metrics("train", done.metrics)
    trainer.save_metrics("train", done.metrics)
    if eval_rows:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model()
    trainer.accelerator.print(f"The model is in {args.output_dir}.")
    if args.push_to_hub:
        on_hub = given.dataset_name is not None and not Path(given.dataset_name).exists()
        trainer.push_to_hub(dataset_name=given.dataset_name if on_hub else None)
    trainer.end()


@contextmanager
def _printed(logger: logging.Logger) -> Iterator[None]:
    """For the time of a `with` block, print what is logged for information."""
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def load_rows(given: TrainArguments, args: RegressionAwareConfig) -> tuple[AnyDataset, dict[str, AnyDataset]]:
    """The rows to train on, and those to evaluate on, by the name of their metrics.

    Raises:
        ValueError: a file of another format, or a prompt template that does not fit the columns.
        FileNotFoundError: there is no such file.
    """
    sources: dict[str, Any]
    if given.train_file is not None:
        sources = {"train": given.train_file, **named_files(given.eval_file or [])}
    else:
        splits = {"train": given.train_split, "eval": given.eval_split}
        sources = {
            name: load_dataset(given.dataset_name, given.dataset_config, split=split)
            for name, split in splits.items()
            if split is not None
        }
    if _ask_questions(given, args, sources["train"]):
        questions = None if given.questions is None else read_questions(given.questions)
        datasets = {name: _question_dataset(one, questions, args, name) for name, one in sources.items()}
    elif given.train_file is not None:
        datasets = {
            name: read_dataset(path, args.prompts_template(), args.label_column) for name, path in sources.items()
        }
    else:
        datasets = sources
    return datasets.pop("train"), datasets


def _ask_questions(given: TrainArguments, args: RegressionAwareConfig, source: Any) -> bool:
    """Whether rows have typed questions, and not one number.

    Raises:
        ValueError: there are neither questions nor a grid, or both; or a setting is for rows with one number.
    """
    first: Mapping[str, Any] = next(iter(read_rows(source) if isinstance(source, str) else source), {})
    brings = holds_questions(first)
    if given.grid is not None:
        # A column of this name may be of no matter.
        if given.questions is not None or (brings and PROMPT not in first and args.prompts_template() is None):
            raise ValueError(
                "`grid` is for rows of one number, and these have typed questions, which bring their options along. "
                "Leave out the grid; or the questions, and name the text and the label of a row: "
                "`prompt_template='Review: {text} Stars:'`, `label_column='stars'`."
            )
        return False
    if given.questions is None and not brings:
        raise ValueError(
            f"There is no grid, and the rows have no questions: their columns are {list(first)}. Pass the numbers "
            "that the model may answer with, such as `grid=1,2,3,4,5`, or typed questions, `questions=questions.json`."
        )
    refuse_settings_of_numbers(args)
    return True


def _question_dataset(
    source: str | AnyDataset, questions: Mapping[str, Question] | None, args: RegressionAwareConfig, name: str
) -> AnyDataset:
    """Rows of typed questions as JSON text, which is what a table can hold of them.

    Raises:
        ValueError: there are none, or rows that cannot be read. The message names them.
    """
    is_file = isinstance(source, str)
    form = QuestionForm(questions, args.prompts_template(), is_from_table(source) if is_file else True)
    what = source if is_file else f"The {name} dataset"
    try:
        rows = form.rows(read_rows(source) if is_file else named_rows(source))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if not rows:
        raise ValueError(f"{what} has no rows.")
    return Dataset.from_list([row.as_json() for row in rows])


def named_files(files: Sequence[str]) -> dict[str, str]:
    """Files by the names of their rows: `dev.jsonl` by `eval`, `hard=hard.jsonl` by `hard`.

    Raises:
        ValueError: several files without names, or two of one name.
    """
    named: dict[str, str] = {}
    for one in files:
        name, _, path = one.partition("=")
        named |= {"eval": one} if not path or Path(one).exists() else {name: path}
    if len(named) < len(files) or (len(files) > 1 and "eval" in named) or "train" in named:
        raise ValueError(
            f"The evaluation files {', '.join(files)} each need a name of their own: --eval_file "
            "dev=dev.jsonl hard=hard.jsonl."
        )
    return named


if __name__ == "__main__":
    sys.exit(main())
