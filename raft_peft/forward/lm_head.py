"""The product of few output embeddings by the matrix of a model's output over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch


def logits_of_few_positions(head: Any, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """What the head's own forward gives for few positions, by its matrix in the dtype that it has.

    Under bf16 autocast the head would copy the whole matrix to bf16, and round each logit to three digits. In the
    matrix' own dtype it is faster and, for float32 weights, exact. And where the last position is a view of all
    output embeddings, torch copies the matrix once for each sequence on the CPU; where it is a tensor of its own, it
    does not.

    Args:
        head: the model's output over the vocabulary.
        states: output embeddings, of shape (batch, positions, hidden).
        args, kwargs: what else the forward takes.
    """
    states = states.clone(memory_format=torch.contiguous_format)
    # Where PEFT trains single rows, its wrapper's weight is a copy of the whole matrix, made when it is asked for.
    weight = getattr(head, "original_module", head).weight
    # Asked here and not before, since accelerate turns autocast on inside the model's forward.
    if not weight.is_floating_point() or not torch.is_autocast_enabled(states.device.type):
        return head.forward(states, *args, **kwargs)
    with torch.autocast(states.device.type, enabled=False):
        return head.forward(states.to(weight.dtype), *args, **kwargs)
