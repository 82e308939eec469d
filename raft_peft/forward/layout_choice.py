"""How the prompts of a batch are laid out: as the run asks, and as the model's attention can, found out by trial."""

from __future__ import annotations

import copy
import logging
import threading
from functools import partial
from typing import Any

import torch

from raft_peft.forward.adapter_kinds import why_rows_stay_whole
from raft_peft.forward.attention import (
    DENSE,
    FULL,
    SLIDING,
    kinds_of_layers,
    leave_flat_sequences,
    own_implementation,
    take_flat_sequences,
)
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.layouts import (
    Layout,
    Sequences,
    flat_sequences,
    grouped_sequences,
    padded_sequences,
    path_sequences,
    tree_sequences,
)
from raft_peft.forward.memory import check_memory
from raft_peft.forward.model import base_model, copied, device_of, run
from raft_peft.forward.prefix_cache import PrefixCache
from raft_peft.grid.trie import Trie
from raft_peft.messages import warn

logger = logging.getLogger(__name__)

# One thread tries what a model can, and the others wait for what it finds.
_TRYING = threading.Lock()
# Shorter than the prompts on which a layout must give the logits that the plain way gives.
_WINDOW = 4
_COMMON = [1, 2]
_CURE_FOR_ROUTERS = " The auxiliary loss of its experts takes no such mask. Set router_aux_loss_coef=0."


class Layouts:
    """Chooses the layout of each batch. What the model can is tried at the first, and said once where it cannot.

    Args:
        model: the model, without a wrapper. With `padding_free` its attention takes flat sequences from now on.
        padding_free: lay the prompts of a batch end to end in one, and what they begin with in common once.
        bidirectional: whether the tokens of a prompt attend to all of it.

    Attributes:
        padding_free: as asked for, and turned off where the model cannot.
    """

    def __init__(self, model: Any, *, padding_free: bool, bidirectional: bool):
        self.padding_free = padding_free
        self.bidirectional = bidirectional
        # Each is None where it was not tried yet.
        self._takes_flat: bool | None = None
        self._takes_trees: bool | None = None
        self._caches_prefixes: bool | None = None
        self._has_trained_on_a_trie = False
        if padding_free:
            take_flat_sequences(model.config.get_text_config())

    def can_cache_prefixes(self, model: Any) -> bool:
        """Whether the model reads prompts behind the keys and values of what they begin with."""
        with _TRYING:
            if self._caches_prefixes is None:
                reason = "tokens attend to later ones" if self.bidirectional else why_no_prefix_cache(model)
                self._caches_prefixes = reason is None
                if reason is not None:
                    logger.info("The common beginning of the prompts is computed for each of them: %s.", reason)
            return self._caches_prefixes

    def take_padding_free(self, model: Any) -> bool:
        """Lay prompts end to end from now on where the model can read them so; returns whether it can."""
        self.padding_free = True
        take_flat_sequences(model.config.get_text_config())
        reason = self._why_left_off(model)
        if reason is not None:
            logger.info("The rows are padded, since they cannot be put end to end: %s.", reason)
        return self.padding_free

    def padded(self, model: Any, trie: Trie | None) -> Layout:
        """The layout of a batch with padding.

        Args:
            model: the model, without a wrapper.
            trie: of the grid; None where every number is one token.

        Raises:
            ValueError: as `choose`.
        """
        if trie is not None and not self._can_take(trie, model):
            return path_sequences
        return partial(padded_sequences if trie is None else tree_sequences, bidirectional=self.bidirectional)

    def choose(
        self, model: Any, trie: Trie | None, prefix: PrefixCache | None = None, *, grouped: bool = False
    ) -> Layout:
        """The layout of a batch.

        Args:
            model: the model, without a wrapper.
            trie: of the grid; None where every number is one token.
            prefix: what all prompts of the batch begin with; only where the model `can_cache_prefixes`.
            grouped: put prompts that share a beginning in one sequence, where the model `can_cache_prefixes`.

        Raises:
            ValueError: the trie needs more memory in training than there is, or cannot be read with this attention.
        """
        if self.padding_free:
            self._try_flat(model)
        padded = self.padded(model, trie)
        if padded is path_sequences:
            return padded
        if prefix is not None:
            return prefix.layout
        if grouped and self._caches_prefixes:
            return grouped_sequences
        if self.padding_free:
            return partial(flat_sequences, bidirectional=self.bidirectional)
        return padded

    def _try_flat(self, model: Any) -> None:
        if self._takes_flat is None:
            reason = self._why_left_off(model)
            if reason is not None:
                warn(logger, f"`padding_free=True` is left off, and the rows are padded: {reason}.")

    def _why_left_off(self, model: Any) -> str | None:
        """Try whether the model reads prompts end to end; where it does not, the reason, and they are padded."""
        reason = why_not_flat(model)
        self._takes_flat = reason is None
        if reason is not None:
            self.padding_free = False
            leave_flat_sequences(model.config.get_text_config())
        return reason

    def _can_take(self, trie: Trie, model: Any) -> bool:
        """Whether the trie stands in one sequence with the prompt."""
        if torch.is_grad_enabled() and not self._has_trained_on_a_trie:
            check_memory(model, trie)
            self._has_trained_on_a_trie = True
        with _TRYING:
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
                f"this model cannot take one: {reason}.{cure} Otherwise set `attention='causal'`, or load it with "
                "`attn_implementation='sdpa'` or 'eager' where it has another."
            )
        paths = trie.paths().shape[1]
        if paths > 1:
            warn(
                logger,
                f"The numbers of this grid are scored in {paths} rows for each prompt instead of one. This is exact, "
                f"and takes about {paths} times as long: {reason}.{cure} If the model has another attention, load it "
                "with `attn_implementation='sdpa'` or 'eager'.",
            )


def why_not_a_tree(model: Any) -> str | None:
    """Why the model cannot read a trie in one sequence; None where it can."""
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return f"its attention implementation is {own_implementation(config)!r}"
    trie = Trie.of([((1, 2, 3), (1, 4), (2, 5), (3,))] * 3).to(device_of(model.get_input_embeddings()))
    return _why_not_equal(model, trie, tree_sequences, path_sequences)


def why_not_flat(model: Any) -> str | None:
    """Why the model cannot read prompts that are laid end to end; None where it can."""
    return _why_not_equal(model, None, flat_sequences, padded_sequences)


def why_no_prefix_cache(model: Any) -> str | None:
    """Why the model cannot read prompts behind the keys and values of what they begin with; None where it can."""
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return f"its attention implementation is {own_implementation(config)!r}"

    def cached_sequences(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: None) -> Sequences:
        return PrefixCache(model, _COMMON).layout(model, input_ids, attention_mask, trie)

    return _why_not_equal(model, None, cached_sequences, padded_sequences)


def _why_not_equal(model: Any, trie: Trie | None, layout: Layout, plain_layout: Layout) -> str | None:
    reason = why_rows_stay_whole(model)
    if reason is not None:
        return reason
    config = model.config.get_text_config()
    others = kinds_of_layers(config) - {FULL, SLIDING}
    if others:
        return f"it has layers of the kind {min(others)!r}"
    device = device_of(model.get_input_embeddings())
    # All begin alike, and the last two share more.
    prompts = [[0, 0, *_COMMON, 5, 6], [*_COMMON, 3, 4, 5, 6], [*_COMMON, 3, 4, 6, 5]]
    input_ids = torch.tensor(prompts, device=device)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [1] * 6], device=device)
    own, other = _twin(model, own_implementation(config)), _twin(model, config._attn_implementation)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            expected = _read(own, plain_layout(own, input_ids, attention_mask, trie))
            found = _read(other, layout(other, input_ids, attention_mask, trie))
    # Whatever an architecture makes of what it does not know.
    except Exception as error:
        return f"its forward does not take them ({type(error).__name__}: {error})"
    if not torch.isfinite(expected).all():
        return "the model gives no numbers"
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.std())):
        return "its numbers change with them"
    return None


def check_bidirectional(model: Any) -> None:
    """Refuse a model whose tokens cannot be made to attend to those behind them.

    It is tried on two tokens, of which the first must change with the second.

    Raises:
        ValueError: the installed transformers cannot do it for this architecture.
    """
    pairs = torch.tensor([[0, 1], [0, 2]], device=device_of(model.get_input_embeddings()))
    try:
        with torch.no_grad():
            final = read_final_position(
                _twin(model, model.config.get_text_config()._attn_implementation),
                pairs,
                torch.ones_like(pairs),
                layout=partial(padded_sequences, bidirectional=True),
                hidden_states=True,
            )
        states = final.hidden_states
        if states is not None and not torch.equal(states[0, 0], states[1, 0]):
            return
    # A forward that takes no `is_causal`.
    except TypeError:
        pass
    raise ValueError(
        f"{type(base_model(model)).__name__} attends to earlier tokens only, and this version of transformers cannot "
        "change that. Set `attention='causal'`."
    )


def _twin(model: Any, implementation: str) -> Any:
    """The model in evaluation, with short windows and this attention, made of modules of its own on the same weights.

    So a trial changes nothing on a model that other threads may be using.
    """
    configs: dict[int, Any] = {}
    twins: dict[Any, Any] = {}

    def config_of(config: Any) -> Any:
        if id(config) not in configs:
            made = configs[id(config)] = copy.deepcopy(config)
            text = made.get_text_config()
            text._attn_implementation = implementation
            if getattr(text, "sliding_window", None) is not None:
                text.sliding_window = min(text.sliding_window, _WINDOW)
            for name, value in vars(config).items():
                if hasattr(value, "get_text_config"):
                    configs[id(value)] = getattr(made, name)
        return configs[id(config)]

    def twin_of(module: Any) -> Any:
        if module not in twins:
            made = twins[module] = copied(module, training=False)
            if hasattr(getattr(module, "config", None), "get_text_config"):
                made.__dict__["config"] = config_of(module.config)
            for name, part in module._modules.items():
                made._modules[name] = part if part is None else twin_of(part)
        return twins[module]

    config_of(base_model(model).config)
    return twin_of(model)


def _read(model: Any, sequences: Sequences) -> torch.Tensor:
    outputs, _ = run(model, sequences)
    return sequences.node_logits(outputs.logits).float().log_softmax(-1)[..., :8]
