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


def kinds_of_layers(config: Any) -> set[str]:
    """What the layers attend to, in transformers' words."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds)
    return {FULL if getattr(config, "sliding_window", None) is None else SLIDING}


def masks_of_layers(
    config: Any,
    implementation: str,
    attends: torch.Tensor,
    distances: torch.Tensor,
    dtype: torch.dtype,
    *,
    bidirectional: bool = False,
) -> dict[str, torch.Tensor]:
    """A mask for each kind of layer, of shape (batch, 1, queries, keys).

    Args:
        config: of the language model.
        implementation: eager, whose masks are added to the scores, or sdpa, whose masks are boolean.
        attends: whether each query may attend to each key, of shape (batch, queries, keys).
        distances: by how many positions the key stands before the query, of the same shape.
        dtype: of masks that are added.
        bidirectional: whether windows reach forward, too; then, in transformers, both ends are one token wider.
    """
    masks = {}
    for kind in kinds_of_layers(config):
        mask = attends
        if kind == SLIDING:
            window = config.sliding_window
            mask = attends & (distances.abs() <= window if bidirectional else distances < window)
        mask = mask.unsqueeze(1)
        if implementation == "eager":
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
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
