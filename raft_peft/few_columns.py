"""What a forward whose output is read at a few columns need not do, in the model's own modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from raft_peft.cpu_precision import bf16_instructions

# Where a module keeps the forward that it has while few columns are read: made once, since torch.compile would compile
# again for another.
_FEW_COLUMNS = "_forward_of_few_columns"
_COLUMNS_KEPT = "_columns_kept"


@contextmanager
def few_columns(head: Any, backbone: Any, keep: int | torch.Tensor, *, all_states: bool = False) -> Iterator[None]:
    """Spare the model's forward what is not seen in the logits of the columns that are kept.

    Args:
        head: the model's output over the vocabulary.
        backbone: the part of the model that gives the output embeddings.
        keep: the columns whose logits are read: how many of the last, or which.
        all_states: whether the output embeddings of the other columns are read, too.
    """
    mlp = None if all_states else _last_mlp(backbone)
    with _few_rows_of_the_head(head), nullcontext() if mlp is None else _columns_of_the_mlp(mlp, keep):
        yield


def _last_mlp(backbone: Any) -> Any:
    """What the last layer does behind its attention, to each column alone; None where it is not sure to do that.

    Not where it adds what came before itself, which it is then given, too. Not of a mixture of experts, whose loss of
    balance is taken of all columns, and not where the backward pass calls the forward again, which must do the same.
    """
    layers = getattr(backbone, "layers", None) or getattr(backbone, "h", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        return None
    layer = layers[-1]
    mlp: Any = getattr(layer, "mlp", None)
    if not type(mlp).__module__.startswith("transformers.") or hasattr(mlp, "experts"):
        return None
    if len(inspect.signature(type(mlp).forward).parameters) != len(("self", "states")):
        return None
    is_called_again = getattr(layer, "gradient_checkpointing", True) or hasattr(layer, "_checkpoint_wrapped_module")
    if is_called_again and torch.is_grad_enabled():
        return None
    is_shared = any(getattr(other, "mlp", None) is mlp for other in layers[:-1])
    return None if is_shared else mlp


@contextmanager
def _columns_of_the_mlp(mlp: Any, keep: int | torch.Tensor) -> Iterator[None]:
    """Let it run on the columns that are kept, and give zeros in the others."""
    setattr(mlp, _COLUMNS_KEPT, keep)
    try:
        with _replaced(mlp, _forward_of_kept_columns):
            yield
    finally:
        delattr(mlp, _COLUMNS_KEPT)


def _forward_of_kept_columns(
    mlp: Any, forward: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor
) -> torch.Tensor:
    if torch.compiler.is_compiling():  # which would compile again for other columns
        return forward(states)
    keep = getattr(mlp, _COLUMNS_KEPT)
    if isinstance(keep, int):
        return torch.nn.functional.pad(forward(states[:, -keep:].contiguous()), (0, 0, states.shape[1] - keep, 0))
    columns = keep.to(states.device)
    few = forward(states.index_select(1, columns))
    return few.new_zeros(*states.shape[:-1], few.shape[-1]).index_copy(1, columns, few)


@contextmanager
def _few_rows_of_the_head(head: Any) -> Iterator[None]:
    """Let the head multiply a few rows by its matrix, and do nothing else to that.

    Under bf16 autocast it would copy the whole matrix to bf16, and round each logit to three digits. In the matrix'
    own dtype it is faster and, for float32 weights, exact. And where the last column is a view of all hidden states,
    torch copies the matrix once for each row on the CPU; where it is a tensor of its own, it does not.
    """
    with _replaced(head, _forward_of_few_rows):
        yield


@contextmanager
def _replaced(module: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Give the module another forward, which is called with the module and its own forward before all else."""
    before = vars(module).get("forward")
    made = getattr(module, _FEW_COLUMNS, None)
    if made is None or made.args != (module, module.forward):  # accelerate gives another to a module that it moves
        made = partial(forward, module, module.forward)
        setattr(module, _FEW_COLUMNS, made)
    module.forward = made
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _forward_of_few_rows(head: Any, forward: Callable[..., Any], rows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    rows = rows.clone(memory_format=torch.contiguous_format)
    # Where PEFT trains single rows, its wrapper's weight is a copy of the whole matrix, made when it is asked for.
    weight = getattr(head, "original_module", head).weight
    # Asked here and not before: accelerate turns autocast on inside the model's forward.
    if not weight.is_floating_point() or not torch.is_autocast_enabled(rows.device.type):
        return forward(rows, *args, **kwargs)
    in_bf16 = _trains_in_bf16_on_the_cpu(rows.device.type)
    with torch.autocast(rows.device.type, enabled=False), _bf16_products() if in_bf16 else nullcontext():
        rows = rows.to(weight.dtype)
        if in_bf16 and _is_a_frozen_matrix(head, forward):
            return _ProductWithFrozenMatrix.apply(rows, weight)
        return forward(rows, *args, **kwargs)


def _trains_in_bf16_on_the_cpu(device_type: str) -> bool:
    """Whether the products of a few rows may be rounded; not in prediction, where exact ones cost a smaller part."""
    if torch.compiler.is_compiling():  # which cannot set what is set here, and chooses its kernels itself
        return False
    in_bf16 = torch.get_autocast_dtype(device_type) == torch.bfloat16
    return device_type == "cpu" and in_bf16 and torch.is_grad_enabled() and hasattr(torch.backends.mkldnn, "matmul")


@contextmanager
def _bf16_products() -> Iterator[None]:
    """On the CPU, float32 products of numbers rounded to bf16 on the way, as autocast would have it, without a copy.

    The kernel is more than twice as fast for few rows.
    """
    products = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, of which its types do not know
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _is_a_frozen_matrix(head: Any, forward: Callable[..., Any]) -> bool:
    if getattr(forward, "__func__", None) is not torch.nn.Linear.forward or head.bias is not None:
        return False
    return type(head.weight) is torch.nn.Parameter and not head.weight.requires_grad


class _ProductWithFrozenMatrix(torch.autograd.Function):
    """The rows' product, whose backward pass is rounded as the forward was, where that is faster: not by AMX."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(rows, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        with _bf16_products() if bf16_instructions() == "AVX512-BF16" else nullcontext():
            return gradient @ weight, None
