"""What the model says at the last real token of each row: the logits there, and of no other position."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftType

from raft_peft.distribution import GridDistribution
from raft_peft.few_columns import few_columns
from raft_peft.trie import TrieReading


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


@dataclass(frozen=True)
class FinalPosition:
    """What the model says at the last real token of each row.

    Attributes:
        logits: over the vocabulary, of shape (batch, vocabulary).
        attention_mask: 1 on real tokens, 0 on padding, which is on the left, of shape (batch, length).
        hidden_states: the output embeddings of all positions, before the head over the vocabulary, of shape
            (batch, length, hidden); None where they were not asked for.
        outputs: all that the model returned.
        trie: what the model says of the grid's numbers, where some are several tokens; else None.
    """

    logits: torch.Tensor
    attention_mask: torch.Tensor
    hidden_states: torch.Tensor | None
    outputs: Any
    trie: TrieReading | None = None

    def distribution(self, grid_token_ids: torch.Tensor, values: torch.Tensor) -> GridDistribution:
        """The distribution over the grid, whether its values are one token each or several.

        Args:
            grid_token_ids: the token of each grid value, of shape (batch, grid), or where some are several tokens,
                all of them, of shape (batch, grid, depth).
            values: the grid's numbers, of shape (grid,).
        """
        if self.trie is None and grid_token_ids.dim() == 3:
            raise ValueError(
                "Some numbers of the grid are several tokens, and their probabilities were not read. Set the class "
                "attribute `reads_grid = True` on the head."
            )
        if self.trie is None:
            return GridDistribution.from_logits(self.logits, grid_token_ids, values)
        return GridDistribution(self.trie.log_probs, values)


@contextmanager
def read_inside(
    model: Any, read: Callable[[Any, torch.Tensor | None], Any], *, hidden_states: bool = False
) -> Iterator[None]:
    """Let the model's forward return what is read off its outputs, instead of these.

    Args:
        model: the model, without a wrapper.
        read: from its outputs, and its output embeddings of shape (batch, length, hidden) where they are kept.
        hidden_states: whether to keep them.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        kept.append(output[0])

    def replace(_module: Any, _arguments: Any, outputs: Any) -> Any:
        return read(outputs, kept[0] if kept else None)

    hooks = [model.register_forward_hook(replace)]
    if hidden_states:
        hooks.append(_backbone(model).register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def padded_left(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with all padding on the left, so that the last real token of each is in the last column."""
    order = attention_mask.argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position of each real token in its row, 0 for padding on the left, of the shape of the mask."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


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
