"""What a model's attention can do, found out by trial.

Two short prompts, under windows shorter than these, must give the logits that the plain way gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raft_peft.attention_masks import DENSE, FULL, SLIDING, kinds_of_layers, shorter_window
from raft_peft.flat_attention import leave_flat_rows, own_implementation
from raft_peft.rows import Rows, flat_rows, padded_rows, path_rows, tree_rows
from raft_peft.trie import Trie

_LENGTH = 6
_WINDOW = 4


def why_not_a_tree(model: Any) -> str | None:
    """Why the model cannot read a trie in one row; None where it can."""
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return f"its attention implementation is {own_implementation(config)!r}"
    trie = Trie.of([((1, 2, 3), (1, 4), (2, 5), (3,))] * 2).to(_device(model))
    return _why_not_equal(model, trie, tree_rows, path_rows)


def why_not_flat(model: Any) -> str | None:
    """Why the model cannot read rows that are laid end to end in one; None where it can."""
    return _why_not_equal(model, None, flat_rows, padded_rows)


def _why_not_equal(
    model: Any, trie: Trie | None, layout: Callable[..., Rows], plain_layout: Callable[..., Rows]
) -> str | None:
    config = model.config.get_text_config()
    others = kinds_of_layers(config) - {FULL, SLIDING}
    if others:
        return f"it has layers of the kind {min(others)!r}"
    device = _device(model)
    input_ids = torch.tensor([[0, 0, 1, 2, 5, 6], [1, 2, 3, 4, 5, 6]], device=device)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], device=device)
    was_training = model.training
    implementation = config._attn_implementation
    model.eval()
    try:
        with torch.no_grad(), shorter_window(config, _WINDOW), torch.autocast(device.type, enabled=False):
            # The plain way under the name that the model's attention has of itself, since some architectures ask it.
            leave_flat_rows(config)
            expected = _read(model, plain_layout(model, input_ids, attention_mask, trie))
            config._attn_implementation = implementation
            found = _read(model, layout(model, input_ids, attention_mask, trie))
    except Exception as error:  # whatever an architecture makes of what it does not know
        return f"its forward does not take them ({type(error).__name__}: {error})"
    finally:
        config._attn_implementation = implementation
        model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.std())):
        return "its numbers change with them"
    return None


def _read(model: Any, rows: Rows) -> torch.Tensor:
    return rows.node_logits(rows.run(model).logits).float().log_softmax(-1)[..., :8]


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device
