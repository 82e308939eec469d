"""Masks for each pair of tokens, in the form that a model's layers take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# What the layers of a model may attend to, in transformers' words, where a dense mask can say it.
FULL, SLIDING = "full_attention", "sliding_attention"
# Attention that takes a dense mask.
DENSE = ("eager", "sdpa")
# Stands before its name where it takes flat rows, too; see flat_attention.py.
FLAT = "flat_"


def own_implementation(config: Any) -> str:
    """The attention implementation that a model has beside flat rows."""
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
        if own_implementation(config) == "eager":  # which adds them to the scores; sdpa takes booleans
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
        masks[kind] = mask
    return masks


@contextmanager
def shorter_window(config: Any, length: int) -> Iterator[None]:
    """A shorter sliding window, for a model that has any."""
    own = getattr(config, "sliding_window", None)
    if own is None:
        yield
        return
    config.sliding_window = min(own, length)
    try:
        yield
    finally:
        config.sliding_window = own
