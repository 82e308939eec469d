"""The settings of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.recipes import RECIPES
from raft_peft.decisions import check_rule

# The settings that may change when a comparison goes on: they ask for more runs, or for another report.
EXTENSIBLE = ("methods", "seeds", "learning_rates", "decisions", "output_dir")


@dataclass
class CompareSettings:
    """What is compared, and how. Every method gets the same model, data, recipe and budget.

    Raises:
        ValueError: a setting that does not exist or cannot be met.
    """

    model: str = field(metadata={"help": "Name or folder of the language model."})
    output_dir: str = field(metadata={"help": "Folder of the comparison. One that was interrupted is gone on with."})
    task: str | None = field(default=None, metadata={"help": "Name of a task of raft_peft.tasks, such as stsb_1k."})
    task_path: str | None = field(
        default=None, metadata={"help": "Local files of the task. By default its Hub repository."}
    )
    methods: str = field(
        default="rail,zero_shot,ce,special_token,raft",
        metadata={
            "help": "Methods, separated by commas, each with options where needed: raft, mbr:renormalize=true, "
            "pooled:pooling=max, raft:init=random, encoder_cls:frozen=true."
        },
    )
    seeds: int = field(default=3, metadata={"help": "Runs of each method, with the seeds 0, 1, ..."})
    learning_rates: str = field(
        default="3e-4,1e-3",
        metadata={"help": "Learning rates, separated by commas. Each method takes its best on validation, at seed 0."},
    )
    recipe: str = field(
        default="lora",
        metadata={"help": "; ".join(f"{name}: {recipe.description}" for name, recipe in RECIPES.items()) + "."},
    )
    max_steps: int = field(default=300, metadata={"help": "Optimizer steps of each training run."})
    eval_steps: int = field(default=50, metadata={"help": "Steps between validations; the best step is kept."})
    eval_batch_size: int = field(default=16, metadata={"help": "Rows in a forward pass of evaluation."})
    max_length: int | None = field(
        default=1024, metadata={"help": "Tokens of a prompt; a longer one loses its start."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first so many rows."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Test on the first so many rows."})
    bf16: bool = field(default=False, metadata={"help": "Train and predict under bfloat16 autocast."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention of the language model."})
    encoder: str | None = field(
        default=None, metadata={"help": "Name or folder of an encoder, for the methods encoder_cls and encoder_mean."}
    )
    decisions: str = field(
        default="mean",
        metadata={"help": "Decision rules to report for methods with a distribution: mean,median,mode,quantile:0.9."},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the task's splits, the same for every run."})
    save_models: bool = field(default=False, metadata={"help": "Keep the model of each run, at its best step."})

    def __post_init__(self) -> None:
        for name in ("seeds", "max_steps", "eval_steps", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be 1 or more.")
        if self.recipe not in RECIPES:
            raise ValueError(f"There is no recipe {self.recipe!r}. Choose of {', '.join(RECIPES)}.")
        labels = [method.label for method in self.compared_methods()]
        if len(set(labels)) < len(labels):
            raise ValueError(f"`methods={self.methods}` names a method twice.")
        for method in self.compared_methods():
            if method.is_encoder and self.encoder is None:
                raise ValueError(f"Method {method.label!r} needs an encoder. Set `encoder` to a name or folder.")
            if method.options.get("init") == "random" and RECIPES[self.recipe].lora is not None:
                raise ValueError(
                    f"Method {method.label!r} starts from random weights, of which recipe {self.recipe!r} would train "
                    "an adapter only. Use recipe full or paper."
                )
        for rule in self.decision_rules():
            check_rule(rule)
        self.rates()

    def compared_methods(self) -> list[ComparedMethod]:
        return [ComparedMethod.parse(label) for label in self.methods.split(",")]

    def decision_rules(self) -> list[str]:
        return [rule.strip() for rule in self.decisions.split(",")]

    def rates(self) -> list[float]:
        try:
            rates = [float(rate) for rate in self.learning_rates.split(",")]
        except ValueError:
            rates = []
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"`learning_rates={self.learning_rates!r}` must be numbers above 0, such as '3e-4,1e-3'.")
        return rates
