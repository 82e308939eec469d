"""What tokens attend to: masks in the form that a model's layers take, and attention for prompts laid end to end.

All but attention works on tokens one by one, and so on a flat sequence. For attention alone the tokens are put back
into rows, each a prompt or a group of prompts that share a beginning. What all begin with stands in the flat sequence
once, and is shown to all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

# What the layers of a model may attend to, in transformers' words, where a dense mask can say it.
FULL, SLIDING = "full_attention", "sliding_attention"
# Attention that takes a dense mask.
DENSE = ("eager", "sdpa")
# Stands before its name where it takes flat sequences, too.
FLAT = "flat_"
# All that transformers knows by name. Made here, since torch 2.7 cannot compile what makes one.
_ATTENTION = AttentionInterface()


def own_implementation(config: Any) -> str:
    """The attention implementation that a model has beside flat sequences."""
    return config._attn_implementation.removeprefix(FLAT)


def kinds_of_layers(config: Any) -> set[str]:
    """What the layers attend to, in transformers' words."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds)
    return {FULL if getattr(config, "sliding_window", None) is None else SLIDING}


def masks_of_layers(
    model: Any,
    attends: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    *,
    bidirectional: bool = False,
) -> dict[str, torch.Tensor]:
    """A mask for each kind of layer, of shape (batch, 1, queries, keys).

    Args:
        model: the model, without a wrapper.
        attends: whether each query may attend to each key, of shape (batch, queries, keys).
        query_positions, key_positions: where they stand, of shape (batch, queries) and (batch, keys).
        bidirectional: whether windows reach forward, too; then, in transformers, both ends are one token wider.
    """
    config = model.config.get_text_config()
    masks = {}
    for kind in kinds_of_layers(config):
        mask = attends
        if kind == SLIDING:
            distances = query_positions.unsqueeze(2) - key_positions.unsqueeze(1)
            window = config.sliding_window
            mask = attends & (distances.abs() <= window if bidirectional else distances < window)
        mask = mask.unsqueeze(1)
        # Eager attention adds masks to the scores; sdpa takes booleans.
        if own_implementation(config) == "eager":
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
        masks[kind] = mask
    return masks


@dataclass(frozen=True)
class FlatSequences:
    """Where the tokens of a flat sequence belong.

    Attributes:
        prefix: how many tokens at its beginning are common to all prompts.
        flat_of_padded: where each token of each row is in what follows, anywhere for padding, of shape (rows, length).
        padded_of_flat: where each token of what follows is in the rows, joined, of shape (tokens,).
        masks: for each kind of layer what the rows attend to in prefix and row, of shape (rows, 1, length, prefix +
            length).
        prefix_masks: the same for the prefix alone, of shape (1, 1, prefix, prefix).
    """

    prefix: int
    flat_of_padded: torch.Tensor
    padded_of_flat: torch.Tensor
    masks: dict[str, torch.Tensor]
    prefix_masks: dict[str, torch.Tensor]


def leave_flat_sequences(config: Any) -> None:
    """Give a model's attention its own implementation back."""
    config._attn_implementation = own_implementation(config)


def take_flat_sequences(config: Any) -> None:
    """Let a model's attention take flat sequences, too; all else goes through its own as before.

    Not for the time of a forward pass alone, since activation checkpointing calls the attention again in the backward
    pass.
    """
    if config._attn_implementation in DENSE:
        config._attn_implementation = FLAT + config._attn_implementation


def _attend(
    implementation: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    flat_sequences: FlatSequences | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers calls it: states of shape (1, heads, tokens, dimension) to (1, tokens, heads,
    dimension)."""
    own = _own_function(implementation, module)
    if flat_sequences is None:
        return own(module, query, key, value, attention_mask, **options)
    flat, prefix = flat_sequences, flat_sequences.prefix
    kind = FULL if options.get("sliding_window") is None else SLIDING
    keys, values = _in_rows(key, flat), _in_rows(value, flat)
    if prefix:
        keys, values = (
            torch.cat([whole[:, :, :prefix].expand(len(own_part), -1, -1, -1), own_part], dim=2)
            for whole, own_part in ((key, keys), (value, values))
        )
    attended, _ = own(module, _in_rows(query, flat), keys, values, flat.masks[kind], **options)
    attended = attended.flatten(0, 1).index_select(0, flat.padded_of_flat).unsqueeze(0)
    if prefix:
        first, _ = own(
            module,
            *(states[:, :, :prefix] for states in (query, key, value)),
            flat.prefix_masks[kind],
            **options,
        )
        attended = torch.cat([first, attended], dim=1)
    return attended, None


def _in_rows(states: torch.Tensor, flat: FlatSequences) -> torch.Tensor:
    """From the flat sequence, (1, heads, tokens, dimension), to rows, (rows, heads, length, dimension)."""
    tokens, places = states[0, :, flat.prefix :].transpose(0, 1), flat.flat_of_padded
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _own_function(implementation: str, module: torch.nn.Module) -> Callable[..., Any]:
    # Each architecture has an eager attention of its own.
    if implementation == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return _ATTENTION[implementation]


def _register(implementation: str) -> None:
    def attend(module: torch.nn.Module, *states: Any, **options: Any) -> Any:
        return _attend(implementation, module, *states, **options)

    AttentionInterface.register(FLAT + implementation, attend)
    AttentionMaskInterface.register(FLAT + implementation, AttentionMaskInterface()[implementation])


for _implementation in DENSE:
    _register(_implementation)
