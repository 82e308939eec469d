"""The settings of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raft_peft.compare.compared_method import ComparedMethod, split_methods
from raft_peft.compare.suites import SUITES, Suite, get_suite
from raft_peft.data.prompt_template import PromptTemplate
from raft_peft.decisions import check_rule
from raft_peft.grid import NumberGrid
from raft_peft.grid.number_grid import GRID_HELP
from raft_peft.tasks import get_task
from raft_peft.training.recipes import RECIPES, STEPS_KEPT, check_warmup, get_recipe

# The settings that may change when a comparison goes on: they ask for more runs, or for another report.
EXTENSIBLE = (
    *("methods", "seeds", "learning_rates", "decisions", "output_dir", "suite", "quick", "one_process"),
    *("baseline", "train_sizes", "base_url"),
)
BUDGETS = ("steps", "epochs")
# What people have without this library, and compare it with.
USUAL_BASELINE = "sequence_classification"

# Enough to see that everything works, and nothing that could be learned from.
QUICK: Mapping[str, Any] = {
    "seeds": 1,
    "max_steps": 2,
    "eval_steps": 2,
    "warmup_steps": 0.5,
    "per_device_train_batch_size": 2,
    "max_train_samples": 32,
    "max_eval_samples": 4,
    "max_test_samples": 4,
    "one_process": True,
}
_DEFAULTS: Mapping[str, Any] = {"seeds": 3, "one_process": False}


def _left_open(help_text: str) -> Any:
    """A field that is None until `__post_init__` fills it from the suite, the recipe or `quick`."""
    return field(default=None, metadata={"help": help_text})


def _listed(described: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {one.description}" for name, one in described.items())


@dataclass
class CompareSettings:
    """What is compared, and how. Every method gets the same model, data, recipe and budget.

    What is left open is taken from `quick` first, then from the suite, then from the recipe.

    Raises:
        ValueError: a setting that does not exist or cannot be met.
    """

    model: str = field(metadata={"help": "Name or folder of the language model."})
    output_dir: str = field(
        metadata={"help": "Folder of the comparison. If it holds one that was interrupted, that continues."}
    )
    task: str | None = field(
        default=None,
        metadata={"help": "Name of a task of raft_peft.tasks, such as stsb_1k, or several with commas between them."},
    )
    task_path: str | None = field(
        default=None,
        metadata={"help": "Path of the task's local files, one for each task. By default they come from the Hub."},
    )
    train_file: str | None = field(default=None, metadata={"help": "Your own rows to train on, instead of a task."})
    eval_file: str | None = field(
        default=None, metadata={"help": "Rows for validation. By default 15 %% of the training rows are held out."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Rows for the test. By default 15 %% of the training rows are held out."}
    )
    grid: str | None = field(default=None, metadata={"help": f"{GRID_HELP}. By default the task's."})
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "The text of the prompt, with the names of columns in braces: 'Review: {text} Stars:'. Or a JSON "
            "list of chat messages with such texts. By default the column `prompt`."
        },
    )
    chat: bool = field(
        default=False,
        metadata={
            "help": "Send prompts as the message of a user, through the chat template. For models that are trained on "
            "chats."
        },
    )
    system: str | None = field(default=None, metadata={"help": "A system message before the prompt."})
    label_column: str = field(default="label", metadata={"help": "Column of your rows with the target number."})
    suite: str | None = field(
        default=None,
        metadata={"help": f"A table of the paper: its methods, tasks and recipe. {_listed(SUITES)}."},
    )
    quick: bool = field(
        default=False,
        metadata={
            "help": f"Few rows, {QUICK['max_steps']} steps, one seed, one learning rate: shows if everything works."
        },
    )
    methods: str = _left_open(
        "Methods, with commas between them, or semicolons if one has a grid: raft, mbr:renormalize=true, "
        "pooled:pooling=max, raft:init=random, encoder_cls:frozen=true, served:model=stars; 'raft:grid=1,9;"
        "raft:grid=1..5'. By default the suite's, or rail,zero_shot,ce,special_token,raft."
    )
    seeds: int = _left_open("Runs of each method, with the seeds 0, 1, ...; by default 3.")
    learning_rates: str = _left_open(
        "Learning rates, with commas between them. Each method takes the best on validation at seed 0. By "
        f"default those of the recipe; for lora {','.join(f'{rate:g}' for rate in RECIPES['lora'].learning_rates)}."
    )
    baseline: str | None = field(
        default=None,
        metadata={
            "help": "The method that the others are compared with, one of `methods`. By default "
            "sequence_classification, or else the first that is trained."
        },
    )
    train_sizes: str = field(
        default="all",
        metadata={
            "help": "Numbers of training rows, with commas between them, for a learning curve: 100,300,1000,all. The "
            "rows of each are among those of the next."
        },
    )
    budget: str = field(
        default="steps",
        metadata={
            "help": "What all train_sizes get alike: steps (max_steps of them), or epochs (as many as max_steps are "
            "over all rows)."
        },
    )
    recipe: str = _left_open(f"By default the suite's, or lora. {_listed(RECIPES)}.")
    max_steps: int = _left_open(f"Optimizer steps of each run; by default the recipe's, {RECIPES['lora'].max_steps}.")
    eval_steps: int = _left_open(f"Steps between validations; by default the recipe's, {RECIPES['lora'].eval_steps}.")
    warmup_steps: float = _left_open(
        "Warm-up of the learning rate: a number of steps, or a share of all steps if below 1. By default the recipe's."
    )
    keep: str = _left_open("Which weights are tested: those of the best step on validation, or of the last step.")
    per_device_train_batch_size: int = _left_open("Rows in a training batch; by default the recipe's, 16.")
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in an optimizer step."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice to save their memory, for every method."}
    )
    padding_free: bool = field(
        default=False,
        metadata={"help": "Put the rows of a training batch end to end, without padding, if the method can."},
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: quantize the language model to 4 bits. Needs a recipe with LoRA."}
    )
    eval_batch_size: int = field(default=16, metadata={"help": "Rows in a forward pass of evaluation."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Greatest length of a prompt in tokens. A longer one loses its beginning."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first rows, this many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first rows, this many."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Test on the first rows, this many."})
    drop_leaks: bool = field(
        default=False,
        metadata={
            "help": "Remove from the rows for training and validation those whose prompt is that of a test row. By "
            "default they are counted and named."
        },
    )
    bf16: bool = field(default=False, metadata={"help": "Train and predict under bfloat16 autocast."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of the language model: sdpa, eager."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Name or folder of an encoder, for the methods encoder_cls and encoder_mean."}
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "A server, such as http://localhost:8000/v1, for the method served:model=NAME: a model that is "
            "asked, and not trained. Its key is in the environment's OPENAI_API_KEY."
        },
    )
    decisions: str = field(
        default="mean",
        metadata={"help": "Decision rules to report for methods with a distribution: mean,median,mode,quantile:0.9."},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the splits, the same for every run."})
    save_models: bool = field(default=False, metadata={"help": "Keep the model of each run."})
    one_process: bool = _left_open(
        "Do all runs in one process. This saves the seconds to start each. But what ends one run ends all, and peak "
        "memory is that of all runs so far. By default only with --quick."
    )

    def __post_init__(self) -> None:
        self._fill_in()
        self._check_numbers()
        self._check_rows()
        self._check_methods()
        for rule in self.decision_rules():
            check_rule(rule)
        self.rates()
        self.sizes()

    def _fill_in(self) -> None:
        """Give what is left open its value."""
        suite = self.suite_asked_for()
        if self.recipe is None:
            self.recipe = "lora" if suite is None else suite.recipe
        recipe = get_recipe(self.recipe)
        rates = [recipe.learning_rate] if self.quick else recipe.learning_rates
        filled = {
            **_DEFAULTS,
            "methods": "rail,zero_shot,ce,special_token,raft" if suite is None else ";".join(suite.methods),
            "learning_rates": ",".join(f"{rate:g}" for rate in rates),
            "max_steps": recipe.max_steps,
            "eval_steps": min(recipe.eval_steps, self.max_steps or recipe.max_steps),
            "warmup_steps": recipe.arguments["warmup_steps"],
            "keep": recipe.keep,
            "per_device_train_batch_size": recipe.arguments["per_device_train_batch_size"],
            **(QUICK if self.quick else {}),
        }
        for name, value in filled.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_numbers(self) -> None:
        counts = ("seeds", "max_steps", "eval_steps", "eval_batch_size", "per_device_train_batch_size")
        for name in (*counts, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be 1 or more.")
        for name in ("max_train_samples", "max_eval_samples", "max_test_samples"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"`{name}={limit}` must be 1 or more. Leave it out for all rows.")
        if self.keep not in STEPS_KEPT:
            raise ValueError(f"`keep={self.keep}` does not exist. Use {' or '.join(STEPS_KEPT)}.")
        if self.budget not in BUDGETS:
            raise ValueError(f"`budget={self.budget}` does not exist. Use {' or '.join(BUDGETS)}.")
        check_warmup(self.warmup_steps, self.max_steps)

    def _check_rows(self) -> None:
        if self.train_file is not None and self.task is not None:
            raise ValueError("A comparison takes one source of data: leave out `task` or `train_file`.")
        if self.train_file is None:
            of_files = {"eval_file": None, "test_file": None, "prompt_template": None, "label_column": "label"}
            stray = [name for name, default in of_files.items() if getattr(self, name) != default]
            if stray:
                raise ValueError(f"`{stray[0]}` is for your own rows. Set `train_file` too.")
        elif self.grid is None:
            raise ValueError("Your own rows need a grid. Set `grid`, such as 1,2,3,4,5.")
        for task in self.tasks():
            get_task(task)
        self.task_paths()
        self.own_grid()
        self.template()

    def template(self) -> PromptTemplate | None:
        """What writes the prompts; None where they come as they are."""
        return PromptTemplate.of(self.prompt_template, chat=self.chat, system=self.system)

    def _check_methods(self) -> None:
        methods = self.compared_methods()
        labels = [method.label for method in methods]
        if len(set(labels)) < len(labels):
            raise ValueError(f"`methods={self.methods}` names a method twice.")
        if self.baseline is not None and not any(
            self.baseline == label or self.baseline.startswith(f"{label}, ") for label in labels
        ):
            raise ValueError(f"`baseline={self.baseline}` is not compared. Use one of {'; '.join(labels)}.")
        served = [method.label for method in methods if method.is_served]
        if served and self.base_url is None:
            raise ValueError(f"Method {served[0]!r} needs a server. Set `base_url`, such as http://localhost:8000/v1.")
        if self.base_url is not None and not served:
            raise ValueError(
                f"`base_url={self.base_url}` is asked by no method. Add `served:model=NAME` to `methods`, or leave it "
                "out."
            )
        with_lora = get_recipe(self.recipe).lora is not None
        if self.load_in_4bit and not with_lora:
            raise ValueError(
                f"`load_in_4bit=True` is for LoRA, and recipe {self.recipe!r} trains all weights, which must not be "
                "quantized. Use recipe lora, or leave it off."
            )
        for method in methods:
            if method.is_encoder and self.encoder is None:
                raise ValueError(f"Method {method.label!r} needs an encoder. Set `encoder` to a name or folder.")
            if (method.starts_at_random or method.token_rows == "random") and with_lora:
                raise ValueError(
                    f"Method {method.label!r} starts from random weights, which recipe {self.recipe!r} would not "
                    f"train. Use one that trains all weights: "
                    f"{', '.join(name for name, recipe in RECIPES.items() if recipe.lora is None)}."
                )

    def suite_asked_for(self) -> Suite | None:
        return None if self.suite is None else get_suite(self.suite)

    def tasks(self) -> list[str]:
        """The tasks that are compared on; none for rows of one's own."""
        if self.task is not None:
            return [name.strip() for name in self.task.split(",")]
        suite = self.suite_asked_for()
        return list(suite.tasks) if suite is not None and self.train_file is None else []

    def task_paths(self) -> list[str | None]:
        """The local files of each task.

        Raises:
            ValueError: they are not as many as the tasks.
        """
        tasks = self.tasks()
        if self.task_path is None:
            return [None] * len(tasks)
        paths = [self.task_path] if len(tasks) == 1 else self.task_path.split(",")
        if len(paths) != len(tasks):
            raise ValueError(
                f"`task_path={self.task_path}` has {len(paths)} paths for {len(tasks)} "
                f"tasks{', ' if tasks else ''}{', '.join(tasks)}. Give each its own, separated by commas in this "
                "order."
            )
        return list(paths)

    def own_grid(self) -> NumberGrid | None:
        """The grid that was asked for, in place of the task's."""
        return None if self.grid is None else NumberGrid.parse(self.grid)

    def compared_methods(self) -> list[ComparedMethod]:
        return [ComparedMethod.parse(label) for label in split_methods(self.methods)]

    def decision_rules(self) -> list[str]:
        return [rule.strip() for rule in self.decisions.split(",")]

    def baseline_label(self) -> str:
        """The method, or the line of one, that the others are compared with."""
        if self.baseline is not None:
            return self.baseline
        methods = self.compared_methods()
        usual = [method for method in methods if method.name == USUAL_BASELINE]
        trained = [method for method in methods if method.trains]
        return next(iter([*usual, *trained, *methods])).label

    def sizes(self) -> list[int | None]:
        """The numbers of training rows; None for all.

        Raises:
            ValueError: they are no numbers above 0, or one is there twice.
        """
        texts = [text.strip() for text in self.train_sizes.split(",")]
        if not all(text == "all" or (text.isdecimal() and int(text) > 0) for text in texts):
            raise ValueError(
                f"`train_sizes={self.train_sizes}` must be numbers above 0 or all, such as '100,300,all'."
            )
        sizes = [None if text == "all" else int(text) for text in texts]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"`train_sizes={self.train_sizes}` has a number twice.")
        return sizes

    def rates(self) -> list[float]:
        try:
            rates = [float(rate) for rate in self.learning_rates.split(",")]
        except ValueError:
            rates = []
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"`learning_rates={self.learning_rates!r}` must be numbers above 0, such as '3e-4,1e-3'.")
        return rates
