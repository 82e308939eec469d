"""How much memory the numbers of a grid take, beside the model."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from raft_peft.trie import Trie

_GIB = 1 << 30
# What the logits of the nodes may take at once where no gradient is needed; more nodes are read in parts.
_AT_ONCE = 1 * _GIB
# Copies of the logits in float32: read, exponentiated and masked, and in training with their gradients.
_COPIES, _COPIES_IN_TRAINING = 3, 4


def nodes_at_once(model: Any, trie: Trie) -> int:
    """How many nodes of a trie can be read together without gradients."""
    return max(1, int(_AT_ONCE / (_COPIES * _bytes_of_a_node(model, trie))))


def check_memory(model: Any, trie: Trie) -> None:
    """Refuse to train on more numbers than there is memory for.

    Raises:
        ValueError: the message holds the estimate.
    """
    nodes = 1 + trie.size
    needed = nodes * _COPIES_IN_TRAINING * _bytes_of_a_node(model, trie)
    available = _available(trie.nodes.device)
    if needed > available:
        raise ValueError(
            f"Training on this grid needs about {needed / _GIB:.1f} GiB for the logits alone, and "
            f"{available / _GIB:.1f} GiB are free: its {trie.token_ids.shape[1]:,} numbers begin in {nodes:,} ways, "
            "each with a row of the vocabulary for every example. Take a coarser grid, since the expectation falls "
            "between its values anyway; smaller batches with gradient accumulation; or give the numbers tokens of "
            "their own with `add_number_tokens`. Prediction works, in parts."
        )


def _bytes_of_a_node(model: Any, trie: Trie) -> int:
    return len(trie.nodes) * model.config.get_text_config().vocab_size * 4


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available
