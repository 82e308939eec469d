"""A loss or gradient that is not a number: which rows it came from, and what the usual causes are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_SHOWN_ROWS = 8
_SHOWN_CHARACTERS = 160


class NonFiniteLossError(FloatingPointError):
    """Training was stopped, since the loss or its gradient is not a finite number."""


def rows_of(batch: dict[str, torch.Tensor], tokenizer: Any, which: torch.Tensor | None = None) -> list[str]:
    """The ends of a batch's prompts and their labels, one line a row; of those alone for which `which` is true."""
    lines = []
    for index, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        if which is None or which[index]:
            text = tokenizer.decode(ids[mask.bool()], skip_special_tokens=False)
            text = text if len(text) <= _SHOWN_CHARACTERS else f"... {text[-_SHOWN_CHARACTERS:]}"
            lines.append(f"label {batch['labels'][index].item():g}: {text!r}")
    return lines


def explanation(step: int, what: str, rows: Iterable[str], learning_rate: float, dtypes: str) -> str:
    """What to say of a step whose loss or gradient is not finite.

    Args:
        step: the number of the optimizer step, from 1.
        what: "loss" or "gradient".
        rows: of the batch, as `rows_of` gives them.
        learning_rate: of the step.
        dtypes: of the weights and of the products, in words.
    """
    rows = list(rows)
    shown = rows[:_SHOWN_ROWS]
    more = [f"and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    of_rows = "\n".join(f"  {line}" for line in [*shown, *more])
    return (
        f"The {what} of step {step} is not a finite number. The rows:\n{of_rows}\n"
        f"Usual causes: a learning rate that is too high (here {learning_rate:g}); fp16 on a model that was trained "
        f"in bf16, such as Gemma (here {dtypes}; set bf16=True or neither); a model whose weights are damaged, or a "
        "loss or head of your own that divides by zero or takes the logarithm of it."
    )


def weights_are_finite(model: Any) -> bool:
    """Whether all trained weights are, as far as this process holds them."""
    held = (getattr(weight, "to_local", lambda w=weight: w)() for weight in model.parameters() if weight.requires_grad)
    return all(bool(torch.isfinite(weight).all()) for weight in held)
