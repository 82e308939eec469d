"""How the rows of a run are laid out: as it asks, and as the model's attention can."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch

from raft_peft.flat_attention import leave_flat_rows, take_flat_rows
from raft_peft.main_process import warn
from raft_peft.prefix_cache import PrefixCache
from raft_peft.rows import Layout, flat_rows, padded_rows, path_rows, tree_rows
from raft_peft.trials import why_no_prefix_cache, why_not_a_tree, why_not_flat
from raft_peft.trie import Trie
from raft_peft.trie_memory import check_memory

logger = logging.getLogger(__name__)

_CURE_FOR_ROUTERS = " The auxiliary loss of its experts takes no such mask; router_aux_loss_coef=0 does without it."


class Layouts:
    """Chooses the layout of each batch. What the model can is tried at the first, and said once where it cannot.

    Args:
        padding_free: lay the rows of a batch end to end in one, and what they begin with in common once.
        bidirectional: whether the tokens of a prompt attend to all of it.

    Attributes:
        padding_free: as asked for, and turned off where the model cannot.
    """

    def __init__(self, *, padding_free: bool, bidirectional: bool):
        self.padding_free = padding_free
        self.bidirectional = bidirectional
        self._has_tried_flat_rows = False
        self._takes_trees: bool | None = None  # not tried yet
        self._caches_prefixes: bool | None = None
        self._has_trained_on_a_trie = False

    def can_cache_prefixes(self, model: Any) -> bool:
        """Whether the model reads prompts behind the keys and values of what they begin with."""
        if self._caches_prefixes is None:
            reason = "tokens attend to those behind them" if self.bidirectional else why_no_prefix_cache(model)
            self._caches_prefixes = reason is None
            if reason is not None:
                logger.info("What the prompts begin with in common is run for each of them: %s.", reason)
        return self._caches_prefixes

    def choose(self, model: Any, trie: Trie | None, prefix: PrefixCache | None = None) -> Layout:
        """The layout of a batch.

        Args:
            model: the model, without a wrapper.
            trie: of the grid; None where every number is one token.
            prefix: what all prompts of the batch begin with; only where the model `can_cache_prefixes`.

        Raises:
            ValueError: the trie needs more memory in training than there is, or cannot be read with this attention.
        """
        if self.padding_free:
            self._try_flat_rows(model)
        if trie is not None and not self._can_take(trie, model):
            return path_rows
        if prefix is not None:
            return prefix.rows
        if self.padding_free:
            return partial(flat_rows, bidirectional=self.bidirectional)
        return partial(padded_rows if trie is None else tree_rows, bidirectional=self.bidirectional)

    def _try_flat_rows(self, model: Any) -> None:
        config = model.config.get_text_config()
        take_flat_rows(config)  # at every batch, in case that another attention was set since
        if self._has_tried_flat_rows:
            return
        self._has_tried_flat_rows = True
        reason = why_not_flat(model)
        if reason is not None:
            self.padding_free = False
            leave_flat_rows(config)
            warn(logger, f"`padding_free=True` is left off, and the rows are padded: {reason}.")

    def _can_take(self, trie: Trie, model: Any) -> bool:
        """Whether the trie stands in one row with the prompt."""
        if torch.is_grad_enabled() and not self._has_trained_on_a_trie:
            check_memory(model, trie)
            self._has_trained_on_a_trie = True
        if self._takes_trees is None:
            reason = why_not_a_tree(model)
            self._takes_trees = reason is None
            if reason is not None:
                self._refuse_or_warn(model, trie, reason)
        return self._takes_trees

    def _refuse_or_warn(self, model: Any, trie: Trie, reason: str) -> None:
        routes = getattr(model.config.get_text_config(), "output_router_logits", False)
        cure = _CURE_FOR_ROUTERS if routes else ""
        if self.bidirectional:
            raise ValueError(
                "`attention='bidirectional'` with numbers of several tokens needs a mask for each pair of tokens, and "
                f"this model cannot take one: {reason}.{cure} Otherwise set attention='causal', or load it with "
                "attn_implementation='sdpa' or 'eager' where it has another."
            )
        paths = trie.paths().shape[1]
        if paths > 1:
            warn(
                logger,
                f"The numbers of this grid are scored in {paths} rows a prompt instead of one, which is exact but "
                f"takes about {paths} times as long: {reason}.{cure} Where the model has another attention than "
                "these, load it with attn_implementation='sdpa' or 'eager'.",
            )
