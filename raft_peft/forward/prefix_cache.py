"""What prompts begin with in common, run once and kept as keys and values for all batches of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, DynamicLayer

from raft_peft.forward.forest import Forest
from raft_peft.forward.layouts import Sequences, as_the_forward_takes_them, groups_of
from raft_peft.forward.model import cache_argument, device_of
from raft_peft.grid.trie import Trie


class PrefixCache:
    """The keys and values of a prefix, and the layout of prompts behind it.

    Args:
        model: the model, without a wrapper. It is run over the prefix.
        token_ids: of the prefix.
    """

    def __init__(self, model: Any, token_ids: Sequence[int]):
        self.token_ids = tuple(token_ids)
        # Without the model's config, so that layers with a sliding window keep all of it: the masks know the window.
        cache = DynamicCache()
        ids = torch.tensor([self.token_ids], device=device_of(model.get_input_embeddings()))
        self._argument = cache_argument(model)
        model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self._argument: cache})
        self._cache = Cache(layers=[_SharedLayer(layer) for layer in cache.layers])

    def layout(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie | None = None
    ) -> Sequences:
        """The layout of prompts that all begin with the prefix: what is behind it, and the trie.

        Each prompt is a sequence, or a group of prompts that share more than the prefix is one. Takes what
        `tree_sequences` does, and None for a trie where every number is one token.
        """
        prefix = len(self.token_ids)
        groups = groups_of(model, input_ids, attention_mask, prefix=prefix, trie=trie)
        forest = Forest.of(input_ids, attention_mask, trie, prefix=prefix, groups=groups)
        return Sequences(
            forest.input_ids,
            as_the_forward_takes_them(forest.masks(model, prefix)),
            forest.positions,
            forest.keep,
            forest.kept_nodes,
            forest.prompts,
            options={self._argument: self._cache},
        )


class _SharedLayer(DynamicLayer):
    """The prefix of one layer, before every prompt of any batch. It keeps nothing of these."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = len(key_states)
        return (
            torch.cat([self.keys.expand(batch, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(batch, -1, -1, -1), value_states], dim=-2),
        )
