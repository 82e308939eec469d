"""How every method of a comparison is trained: one recipe for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
        description: one line.
        arguments: of `TrainingArguments`, but for the learning rate and the budget.
        lora: of `peft.LoraConfig`; None to train all weights.
        dropout: of the model itself, where its architecture has any.
    """

    description: str
    arguments: dict[str, Any]
    lora: dict[str, Any] | None = None
    dropout: float | None = None


RECIPES = {
    "lora": Recipe(
        "LoRA of rank 16 on all linear layers, AdamW, cosine after a warm-up of a tenth, batch 16",
        {"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.1},
        lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    ),
    "full": Recipe(
        "all weights, AdamW, cosine after a warm-up of a tenth, batch 16",
        {"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.1},
    ),
    "paper": Recipe(
        "all weights, Adafactor with epsilons 1e-30 and 1e-3, constant learning rate, dropout 0.1, batch 16",
        # transformers' Adafactor has these epsilons
        {
            "per_device_train_batch_size": 16,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "optim": "adafactor",
        },
        dropout=0.1,
    ),
}

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
