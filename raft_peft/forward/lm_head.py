"""The product of few output embeddings by the matrix of a model's output over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch

# The CPU's threads divide a product over the vocabulary, often a multiple of this, among them by such parts.
_PARTS = 64


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
    if not weight.is_floating_point():
        return head.forward(states, *args, **kwargs)
    # Asked here and not before, since accelerate turns autocast on inside the model's forward.
    autocast = torch.is_autocast_enabled(states.device.type)
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(weight.dtype) if autocast else states
        if _is_frozen_on_the_cpu(head):
            return _ProductWithFrozenMatrix.apply(states, weight)
        return head.forward(states, *args, **kwargs)


def _is_frozen_on_the_cpu(head: Any) -> bool:
    is_plain = type(head).forward is torch.nn.Linear.forward and "forward" not in vars(head)
    if (
        torch.compiler.is_compiling()
        or not is_plain
        or head.bias is not None
        or type(head.weight) is not torch.nn.Parameter
    ):
        return False
    return not head.weight.requires_grad and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32


class _ProductWithFrozenMatrix(torch.autograd.Function):
    """The product of few float32 rows by a high matrix that is not trained, in the form that is fastest on a CPU."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        # The matrix on the left takes half the time or less for up to 8 rows, and no more for many.
        logits = torch.nn.functional.linear(weight, states.flatten(0, -2))
        return logits.t().contiguous().view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        if weight.shape[0] % _PARTS:
            of_states = rows @ weight
        else:
            parts = rows.view(len(rows), _PARTS, -1).transpose(0, 1)
            of_states = torch.bmm(parts, weight.view(_PARTS, -1, weight.shape[1])).sum(0)
        return of_states.view(*gradient.shape[:-1], -1), None
