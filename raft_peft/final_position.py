"""The logits of the last real token of each row, and of no other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def check_final_logits(model: Any) -> None:
    """Refuse a model that cannot give the logits of one position alone.

    Raises:
        ValueError: the model has no output over a vocabulary, or its forward takes no `logits_to_keep`.
    """
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(_base_model(model)).__name__} has no output over the vocabulary. RAFT reads the probabilities of "
            "number tokens: load the model with AutoModelForCausalLM."
        )
    if "logits_to_keep" not in _forward_parameters(model):
        raise ValueError(
            f"{type(_base_model(model)).__name__}.forward takes no `logits_to_keep`, so it would build the logits of "
            "every position. Use a decoder whose forward takes it, as those of transformers do."
        )


def final_position_outputs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, unwrapped: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """Run the model's own forward, keeping the logits of the final position alone.

    Whatever the architecture does behind its head (soft-capping, scaling) is done, since its own forward does it.
    The rows may be padded on either side, or both, with any token.

    Args:
        model: the model to call, possibly wrapped for distributed training.
        input_ids: tokens, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        unwrapped: the model without its wrapper, where it has one.
        kwargs: passed on to the forward.

    Returns:
        The logits over the vocabulary of shape (batch, vocabulary), and the outputs of the model.
    """
    unwrapped = model if unwrapped is None else unwrapped
    # Padding goes to the left, so that every row's last real token is in the last column.
    order = attention_mask.argsort(dim=1, stable=True)
    input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1, **kwargs}
    parameters = _forward_parameters(unwrapped)
    if "position_ids" in parameters:
        inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    with _head_in_its_own_dtype(unwrapped):
        outputs = model(**inputs)
    return outputs.logits[:, -1], outputs


@contextmanager
def _head_in_its_own_dtype(model: Any) -> Iterator[None]:
    """Keep autocast off the output matrix.

    Under bf16 autocast the head would copy its whole matrix to bf16, to multiply a few rows, and round each logit to
    three digits. In the matrix' own dtype it is faster and, for float32 weights, exact.
    """
    head = model.get_output_embeddings()
    weight = head.weight
    if not torch.is_autocast_enabled(weight.device.type) or not weight.is_floating_point():
        yield
        return
    autocast_off = torch.autocast(weight.device.type, enabled=False)

    def enter(_module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        autocast_off.__enter__()
        return (arguments[0].to(weight.dtype), *arguments[1:])

    def leave(*_: Any) -> None:
        autocast_off.__exit__(None, None, None)

    handles = [head.register_forward_pre_hook(enter), head.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _base_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_base_model(model).forward).parameters
