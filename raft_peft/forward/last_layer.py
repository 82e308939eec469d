"""What a forward whose output is read at a few columns need not do, in the model's own modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from raft_peft.forward.lm_head import forward_of_few_rows

# Where a module keeps the forward that it has while few columns are read: made once, since torch.compile would compile
# again for another.
_FEW_COLUMNS = "_forward_of_few_columns"
_THIS_FORWARD = "_few_columns_of_this_forward"
_RUNS_AGAIN = "_runs_again_in_a_forward"

# What an attention may be made of, so that its queries and its output are taken of each column alone. Not of one that
# mixes its queries' columns before it attends, as by a convolution.
_PLAIN_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "v_norm", "rotary_emb"}

_NORMS_BEHIND_ATTENTION = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass
class ThisForward:
    """What happens in a forward that few columns are read of."""

    keep: int | torch.Tensor
    have_run: list[Any] = field(default_factory=list)
    has_to_run_again: bool = False


@contextmanager
def few_columns(
    head: Any, backbone: Any, keep: int | torch.Tensor, *, all_states: bool = False
) -> Iterator[ThisForward]:
    """Spare the model's forward what is not seen in the logits of the columns that are kept.

    Args:
        head: the model's output over the vocabulary.
        backbone: the part of the model that gives the output embeddings.
        keep: the columns whose logits are read: how many of the last, or which.
        all_states: whether the output embeddings of the other columns are read, too.

    Yields:
        What happens in the forward. Where it `has_to_run_again`, its output is wrong, and the next one's right.
    """
    now = ThisForward(keep)
    with ExitStack() as stack:
        stack.enter_context(_replaced(head, forward_of_few_rows))
        for module in () if all_states else _modules_of_each_column_alone(backbone):
            stack.enter_context(_columns_of(module, now))
        yield now


def _modules_of_each_column_alone(backbone: Any) -> list[Any]:
    """What the last layer does to each column alone, that is all but its keys, values and attention.

    Nothing where the backward pass calls the forward again, which must do the same.
    """
    layers = getattr(backbone, "layers", None) or getattr(backbone, "h", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        return []
    layer = layers[-1]
    is_called_again = getattr(layer, "gradient_checkpointing", True) or hasattr(layer, "_checkpoint_wrapped_module")
    if is_called_again and torch.is_grad_enabled():
        return []
    mlp: Any = getattr(layer, "mlp", None)
    attention: Any = getattr(layer, "self_attn", None)
    if not _is_plain_mlp(mlp):
        return []  # then what the attention gives may be read in all columns
    norms = [getattr(layer, name, None) for name in _NORMS_BEHIND_ATTENTION] + [getattr(backbone, "norm", None)]
    parts = dict(attention.named_children()) if _is_known(attention) else {}
    if {"q_proj", "o_proj"} <= parts.keys() <= _PLAIN_ATTENTION:
        return [mlp, *filter(None, norms), parts["q_proj"], parts["o_proj"]]
    return [mlp, *filter(None, norms)]


def _is_plain_mlp(mlp: Any) -> bool:
    """Not where it adds what came before itself, which it is then given, too.

    Not a mixture of experts either, whose loss of balance is taken of all columns, nor code from elsewhere.
    """
    if not _is_known(mlp) or hasattr(mlp, "experts"):
        return False
    return len(inspect.signature(type(mlp).forward).parameters) == len(("self", "states"))


def _is_known(module: Any) -> bool:
    return type(module).__module__.startswith("transformers.")


@contextmanager
def _columns_of(module: Any, now: ThisForward) -> Iterator[None]:
    """Let it run on the columns that are kept, and give zeros in the others."""
    setattr(module, _THIS_FORWARD, now)
    try:
        with _replaced(module, _forward_of_kept_columns):
            yield
    finally:
        delattr(module, _THIS_FORWARD)


def _forward_of_kept_columns(module: Any, forward: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # which would compile again for other columns
        return forward(*args, **kwargs)
    takes_columns = len(args) == 1 and not kwargs and args[0].dim() == len(("batch", "columns", "hidden"))
    if getattr(module, _RUNS_AGAIN, False) or not takes_columns:
        return forward(*args, **kwargs)
    now = getattr(module, _THIS_FORWARD)
    if module in now.have_run:  # some models run layers again and again, and a norm in other places, too
        setattr(module, _RUNS_AGAIN, True)
        now.has_to_run_again = True
    now.have_run.append(module)
    (states,) = args
    if isinstance(now.keep, int):
        few = forward(states[:, -now.keep :].contiguous())
        return torch.nn.functional.pad(few, (0, 0, states.shape[1] - now.keep, 0))
    columns = now.keep.to(states.device)
    few = forward(states.index_select(1, columns))
    return few.new_zeros(*states.shape[:-1], few.shape[-1]).index_copy(1, columns, few)


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
