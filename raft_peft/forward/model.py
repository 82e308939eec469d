"""What the model says at the last real token of each row: the logits there, and of no other position."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftType

from raft_peft.forward.last_layer import few_columns
from raft_peft.forward.layouts import Rows, positions_of


def check_final_logits(model: Any) -> None:
    """Refuse a model that cannot give the logits of one position alone.

    Raises:
        ValueError: the model has no output over a vocabulary, its forward takes no `logits_to_keep`, or its adapter
            puts virtual tokens before the row.
    """
    for adapter in getattr(model, "peft_config", {}).values():
        if adapter.is_prompt_learning and adapter.peft_type != PeftType.PREFIX_TUNING:
            raise ValueError(
                f"The adapter is of the type {adapter.peft_type.value}, whose virtual tokens stand before the "
                "padding of a row, so that its numbers would change with the batch. Use LoRA or prefix tuning."
            )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(base_model(model)).__name__} has no output over the vocabulary. RAFT reads the probabilities of "
            "number tokens: load the model with AutoModelForCausalLM."
        )
    if "logits_to_keep" not in forward_parameters(model):
        raise ValueError(
            f"{type(base_model(model)).__name__}.forward takes no `logits_to_keep`, so it would build the logits of "
            "every position. Use a decoder whose forward takes it, as those of transformers do."
        )


def last_logits(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
    keep: int | torch.Tensor,
    *,
    position_ids: torch.Tensor | None = None,
    unwrapped: Any = None,
    all_states: bool = False,
    **kwargs: Any,
) -> Any:
    """The model's outputs with the logits of the last columns alone, or of those named.

    The positions are counted from the attention mask, of shape (batch, length), unless they are given.
    The output embeddings of other columns are right only with `all_states`.
    """
    unwrapped = model if unwrapped is None else unwrapped
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": keep, **kwargs}
    parameters = forward_parameters(unwrapped)
    if "position_ids" in parameters:
        if position_ids is None and isinstance(attention_mask, torch.Tensor):
            position_ids = positions_of(attention_mask)
        inputs["position_ids"] = position_ids
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    asked = ("output_hidden_states", "output_attentions")
    all_states = all_states or any(getattr(unwrapped.config, name, False) or name in kwargs for name in asked)
    head, backbone = unwrapped.get_output_embeddings(), _backbone(unwrapped)
    while True:
        with few_columns(head, backbone, keep, all_states=all_states) as forward:
            outputs = model(**inputs)
        if not forward.has_to_run_again:
            return outputs


def run(model: Any, rows: Rows, **kwargs: Any) -> Any:
    """The model's outputs for rows, with the logits of their columns alone."""
    return last_logits(
        model, rows.input_ids, rows.attention_mask, rows.keep, position_ids=rows.position_ids, **rows.options, **kwargs
    )


def _backbone(model: Any) -> Any:
    """The part of the model that gives the output embeddings."""
    return base_model(model).get_decoder()


def base_model(model: Any) -> Any:
    """The model under an adapter, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(embeddings: Any) -> torch.device:
    """Where the input or output embeddings run, also where they wait on disk or in the CPU's memory until they do."""
    device = embeddings.weight.device
    return device if device.type != "meta" else torch.device(embeddings._hf_hook.execution_device)


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """What the forward of the model under any adapter takes, by name."""
    return inspect.signature(base_model(model).forward).parameters


# What bitsandbytes' Linear4bit asks before it packs its weights.
_PACKS = "support_avx512bf16_for_cpu"


def keep_4bit_weights_as_they_are(model: Any) -> None:
    """Keep bitsandbytes from packing the 4-bit weights of a model for inference.

    On CPUs with bf16 instructions it does so at the first evaluation, for good. What is packed has coarser scales, and
    passes no gradients on: training would go on, silently, with the few that do not go through it.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def check_not_packed(model: Any) -> None:
    """Refuse to train on 4-bit weights that bitsandbytes has packed for inference.

    Raises:
        ValueError: some are.
    """
    for name, module in model.named_modules():
        if hasattr(module, _PACKS) and getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"The 4-bit weights of {name} were packed for inference when the model was run, and pass on no "
                "gradients. Load the model afresh, and evaluate it with the trainer."
            )
