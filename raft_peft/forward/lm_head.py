"""The product of a few rows by the matrix of a model's output over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from raft_peft.forward.cpu_precision import bf16_instructions

# Into which the product over the vocabulary, often a multiple of it, is divided.
_PARTS = 64


def forward_of_few_rows(head: Any, forward: Callable[..., Any], rows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """What the head's forward gives for a few rows, by its matrix in the dtype that it has.

    Under bf16 autocast the head would copy the whole matrix to bf16, and round each logit to three digits. In the
    matrix' own dtype it is faster and, for float32 weights, exact. And where the last column is a view of all hidden
    states, torch copies the matrix once for each row on the CPU; where it is a tensor of its own, it does not.

    Args:
        head: the model's output over the vocabulary.
        forward: its forward, which is not called where there is a faster way.
        rows: output embeddings, of shape (batch, columns, hidden).
    """
    rows = rows.clone(memory_format=torch.contiguous_format)
    # Where PEFT trains single rows, its wrapper's weight is a copy of the whole matrix, made when it is asked for.
    weight = getattr(head, "original_module", head).weight
    if not weight.is_floating_point():
        return forward(rows, *args, **kwargs)
    # Asked here and not before: accelerate turns autocast on inside the model's forward.
    autocast = torch.is_autocast_enabled(rows.device.type)
    rounded = autocast and _trains_in_bf16_on_the_cpu(rows.device.type)
    with torch.autocast(rows.device.type, enabled=False) if autocast else nullcontext():
        rows = rows.to(weight.dtype) if autocast else rows
        if _is_frozen_on_the_cpu(head, forward):
            return _ProductWithFrozenMatrix.apply(rows, weight, rounded)
        with _bf16_products() if rounded else nullcontext():
            return forward(rows, *args, **kwargs)


def _trains_in_bf16_on_the_cpu(device_type: str) -> bool:
    """Whether the products of a few rows may be rounded; not in prediction, where exact ones cost a smaller part."""
    if torch.compiler.is_compiling():  # which cannot set what is set here, and chooses its kernels itself
        return False
    in_bf16 = torch.get_autocast_dtype(device_type) == torch.bfloat16
    return device_type == "cpu" and in_bf16 and torch.is_grad_enabled() and hasattr(torch.backends.mkldnn, "matmul")


@contextmanager
def _bf16_products() -> Iterator[None]:
    """On the CPU, let float32 products be of numbers rounded to bf16, as autocast would have it, without a copy.

    The kernels for that, of which not all round, are more than twice as fast for few rows.
    """
    products = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, of which its types do not know
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _is_frozen_on_the_cpu(head: Any, forward: Callable[..., Any]) -> bool:
    if torch.compiler.is_compiling() or getattr(forward, "__func__", None) is not torch.nn.Linear.forward:
        return False
    weight = head.weight
    is_plain = type(weight) is torch.nn.Parameter and head.bias is None and not weight.requires_grad
    return is_plain and weight.device.type == "cpu" and weight.dtype == torch.float32


class _ProductWithFrozenMatrix(torch.autograd.Function):
    """The product of few float32 rows by a high matrix that is not trained, in the form that a CPU does fastest."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, rounded: bool) -> torch.Tensor:
        ctx.save_for_backward(weight)
        # By AMX, rounded products were slower in this pass.
        ctx.rounded = rounded and bf16_instructions() == "AVX512-BF16"
        if rounded:
            with _bf16_products():
                return torch.nn.functional.linear(rows, weight)
        # The matrix on the left takes half the time or less for up to 8 rows, and no more for many.
        logits = torch.nn.functional.linear(weight, rows.flatten(0, -2))
        return logits.t().contiguous().view(*rows.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        with _bf16_products() if ctx.rounded else nullcontext():
            of_rows = _product_in_parts(gradient.flatten(0, -2), weight)
        return of_rows.view(*gradient.shape[:-1], -1), None, None


def _product_in_parts(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Few long rows times a high matrix, added up from parts of it, over which the CPU's threads divide the work."""
    if matrix.shape[0] % _PARTS:
        return rows @ matrix
    of_rows = rows.view(len(rows), _PARTS, -1).transpose(0, 1)
    return torch.bmm(of_rows, matrix.view(_PARTS, -1, matrix.shape[1])).sum(0)
