"""What a model's attention can do, found out by trial on two short prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from raft_peft.attention_masks import DENSE, FULL, SLIDING, kinds_of_layers, own_implementation, shorter_window
from raft_peft.final_position import base_model, device_of
from raft_peft.flat_attention import leave_flat_rows
from raft_peft.prefix_cache import PrefixCache
from raft_peft.reading import read_final_position
from raft_peft.rows import Layout, Rows, flat_rows, padded_rows, path_rows, tree_rows
from raft_peft.trie import Trie

# Shorter than the prompts on which a layout must give the logits that the plain way gives.
_WINDOW = 4
_COMMON = [1, 2]


def why_not_a_tree(model: Any) -> str | None:
    """Why the model cannot read a trie in one row; None where it can."""
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return f"its attention implementation is {own_implementation(config)!r}"
    trie = Trie.of([((1, 2, 3), (1, 4), (2, 5), (3,))] * 2).to(device_of(model.get_input_embeddings()))
    return _why_not_equal(model, trie, tree_rows, path_rows)


def why_not_flat(model: Any) -> str | None:
    """Why the model cannot read rows that are laid end to end in one; None where it can."""
    return _why_not_equal(model, None, flat_rows, padded_rows)


def why_no_prefix_cache(model: Any) -> str | None:
    """Why the model cannot read prompts behind the keys and values of what they begin with; None where it can."""
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return f"its attention implementation is {own_implementation(config)!r}"

    def cached_rows(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: None) -> Rows:
        return PrefixCache(model, _COMMON).rows(model, input_ids, attention_mask, trie)

    return _why_not_equal(model, None, cached_rows, padded_rows)


def _why_not_equal(model: Any, trie: Trie | None, layout: Layout, plain_layout: Layout) -> str | None:
    config = model.config.get_text_config()
    others = kinds_of_layers(config) - {FULL, SLIDING}
    if others:
        return f"it has layers of the kind {min(others)!r}"
    device = device_of(model.get_input_embeddings())
    input_ids = torch.tensor([[0, 0, *_COMMON, 5, 6], [*_COMMON, 3, 4, 5, 6]], device=device)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], device=device)
    implementation = config._attn_implementation
    try:
        with _in_evaluation(model), shorter_window(config, _WINDOW), torch.autocast(device.type, enabled=False):
            # The plain way under the name that the model's attention has of itself, since some architectures ask it.
            leave_flat_rows(config)
            expected = _read(model, plain_layout(model, input_ids, attention_mask, trie))
            config._attn_implementation = implementation
            found = _read(model, layout(model, input_ids, attention_mask, trie))
    except Exception as error:  # whatever an architecture makes of what it does not know
        return f"its forward does not take them ({type(error).__name__}: {error})"
    finally:
        config._attn_implementation = implementation
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
        with _in_evaluation(model):
            final = read_final_position(
                model,
                pairs,
                torch.ones_like(pairs),
                layout=partial(padded_rows, bidirectional=True),
                hidden_states=True,
            )
        first = final.hidden_states[:, 0]
        if not torch.equal(first[0], first[1]):
            return
    except TypeError:  # a forward that takes no `is_causal`
        pass
    raise ValueError(
        f"{type(base_model(model)).__name__} attends to earlier tokens only, and this version of transformers cannot "
        "change that. Set attention='causal'."
    )


@contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _read(model: Any, rows: Rows) -> torch.Tensor:
    return rows.node_logits(rows.run(model).logits).float().log_softmax(-1)[..., :8]
