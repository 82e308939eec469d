"""Named ways to train, those of the paper's Appendix D among them: `--recipe paper_gemma2`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import AutoConfig

from raft_peft.messages import warn

logger = logging.getLogger(__name__)

STEPS_KEPT = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train. What a user sets besides counts more.

    Attributes:
        description: one line.
        arguments: of `TrainingArguments`, but for those below.
        learning_rates: among which a run on validation chooses.
        max_steps: optimizer steps.
        eval_steps: steps between validations.
        keep: which step's weights are kept, `best` by validation RMSE or `last`.
        lora: of `peft.LoraConfig`; None to train all weights.
        dropout: of the model itself, where its architecture has any; None for the model's own.
        warmup_from: the learning rate at step 0 of the warm-up; None for 0. With the scheduler
            `cosine_warmup_with_min_lr`.
    """

    description: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...]
    max_steps: int
    eval_steps: int
    keep: str = "best"
    lora: Mapping[str, Any] | None = None
    dropout: float | None = None
    warmup_from: float | None = None

    @property
    def learning_rate(self) -> float:
        """Of the learning rates the middle one, for a run that tries one alone."""
        return self.learning_rates[(len(self.learning_rates) - 1) // 2]

    def scheduler_options(self, learning_rate: float) -> dict[str, Any] | None:
        """The `lr_scheduler_kwargs` of a run at a learning rate, or None."""
        if self.warmup_from is None:
            return None
        return {"min_lr_rate": 0.0, "warmup_lr_rate": self.warmup_from / learning_rate}

    def training_options(self) -> dict[str, Any]:
        """The defaults that the recipe sets of `raft-peft train`: those of `TrainingArguments` and `ModelConfig`."""
        lora = {} if self.lora is None else {**self.lora, "target_modules": [self.lora["target_modules"]]}
        return {
            **self.arguments,
            "learning_rate": self.learning_rate,
            "max_steps": self.max_steps,
            "eval_strategy": "steps",
            "eval_steps": self.eval_steps,
            "save_strategy": "steps",
            "save_steps": self.eval_steps,
            "save_total_limit": 1,
            "load_best_model_at_end": self.keep == "best",
            "metric_for_best_model": "rmse",
            "use_peft": self.lora is not None,
            **{name if name.startswith("lora_") else f"lora_{name}": value for name, value in lora.items()},
        }

    def model_options(self, model: str, **hub: Any) -> dict[str, Any]:
        """The options with which a model is opened by its name, so that it has the recipe's dropout.

        A model without any is trained without, and that is said.
        """
        if self.dropout is None:
            return {}
        config = AutoConfig.from_pretrained(model, **hub)
        found = {name: self.dropout for name in DROPOUT_NAMES if hasattr(config, name)}
        if not found and self.dropout > 0:
            warn(
                logger, f"The recipe's dropout of {self.dropout} is left out: the architecture of {model!r} has none."
            )
        return found


# What the architectures of transformers call their dropout.
DROPOUT_NAMES = (
    "attention_dropout",
    "attn_pdrop",
    "attention_probs_dropout_prob",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
)

_COSINE = {"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}

# The paper names no clipping of gradients; Adafactor clips its own updates. It validates every 200 steps, of which
# all numbers in its Table 21 are multiples.
_PAPER = {"per_device_train_batch_size": 16, "max_grad_norm": 0.0}

_GEMMA2 = Recipe(
    description="the paper's for Gemma-2: all weights, Adafactor with epsilons 1e-30 and 1e-3 and decay 0.8, constant "
    "learning rate of 1e-4, 1e-5 or 1e-6, dropout 0.1, batch 16, 200,000 steps, the best on validation",
    # These epsilons and this decay are the defaults of transformers' Adafactor, and `Trainer` passes on no others. It
    # takes the learning rate as it is, while with a rate in units of a weight's own size, for which the second epsilon
    # is, weights would move more slowly. Which of the two the paper did, it does not say.
    arguments={**_PAPER, "optim": "adafactor", "lr_scheduler_type": "constant", "warmup_steps": 0},
    learning_rates=(1e-4, 1e-5, 1e-6),
    max_steps=200_000,
    eval_steps=200,
    dropout=0.1,
)

RECIPES = {
    "lora": Recipe(
        description="LoRA of rank 16 on all linear layers, AdamW, cosine after a warm-up of a tenth, batch 16, "
        "300 steps, the best on validation",
        arguments=_COSINE,
        learning_rates=(3e-4, 1e-3),
        max_steps=300,
        eval_steps=50,
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
    ),
    "full": Recipe(
        description="all weights, AdamW, cosine after a warm-up of a tenth, batch 16, 300 steps, the best on "
        "validation",
        arguments=_COSINE,
        learning_rates=(2e-5, 1e-4),
        max_steps=300,
        eval_steps=50,
    ),
    "paper_gemma2": _GEMMA2,
    "paper_palm2": replace(
        _GEMMA2,
        description="the paper's for PaLM-2: as paper_gemma2, but batch 64, no dropout, 5,000 steps, the last",
        arguments={**_GEMMA2.arguments, "per_device_train_batch_size": 64},
        max_steps=5_000,
        keep="last",
        dropout=0.0,
    ),
    "paper_movielens": replace(
        _GEMMA2,
        description="the paper's for MovieLens: as paper_gemma2, but AdamW, and cosine after a warm-up of 10,000 "
        "steps from 1e-8",
        arguments={
            **_PAPER,
            "optim": "adamw_torch",
            "lr_scheduler_type": "cosine_warmup_with_min_lr",
            "warmup_steps": 10_000,
        },
        warmup_from=1e-8,
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none. The message lists the names there are.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}. Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def check_warmup(warmup_steps: float, max_steps: int) -> None:
    """Refuse a warm-up that takes the whole run, as that of a recipe for long runs would take a short one.

    Args:
        warmup_steps: steps, or below 1 a share of all.
        max_steps: of the run; below 1 where it is not known.

    Raises:
        ValueError: the learning rate would never be reached.
    """
    if 1 <= max_steps <= warmup_steps:
        raise ValueError(
            f"The warm-up takes {warmup_steps:,.0f} of {max_steps:,} steps, and the learning rate would never be "
            "reached. Set `max_steps` higher, or `warmup_steps` lower."
        )
