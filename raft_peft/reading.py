"""One forward pass to the last real token of each prompt, and to the nodes of a trie behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raft_peft.final_position import FinalPosition, padded_left, read_inside
from raft_peft.rows import Layout, Rows, padded_rows
from raft_peft.trie import Trie, TrieReading


def read_final_position(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie | None = None,
    *,
    layout: Layout = padded_rows,
    unwrapped: Any = None,
    hidden_states: bool = False,
    constrained: bool = False,
    max_nodes: int | None = None,
    reader: Callable[[FinalPosition], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Run the model's own forward, keeping the logits of the final position alone, and of the nodes of a trie.

    Whatever the architecture does behind its head (soft-capping, scaling) is done, since its own forward does it.
    The rows may be padded on either side, or both, with any token.

    Args:
        model: the model to call, possibly wrapped for distributed training.
        input_ids: tokens of the prompts, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        trie: of the grid; None where every number is one token.
        layout: makes the rows, see `Layout`.
        unwrapped: the model without its wrapper, where it has one.
        hidden_states: whether to keep the output embeddings of all positions of the prompts.
        constrained: whether to read what decoding gives that is held to the grid, too.
        max_nodes: read the trie in parts of so many nodes, each with a forward pass of its own; None for one pass.
        reader: what to make of the final position. It is called inside the model's forward, so that a wrapper sees
            its parameters used, and must give tensors, or a dict of them.
        kwargs: passed on to the forward.

    Returns:
        What the reader gave, or the `FinalPosition` itself where there is none.
    """
    input_ids, attention_mask = padded_left(input_ids, attention_mask)
    unwrapped = model if unwrapped is None else unwrapped
    parts = [trie] if trie is None or max_nodes is None else trie.parts(max_nodes)
    before: Any = None
    for index, part in enumerate(parts):
        rows = layout(unwrapped, input_ids, attention_mask, part)

        def read(
            outputs: Any,
            states: torch.Tensor | None,
            part: Trie | None = part,
            rows: Rows = rows,
            before: TrieReading | None = before,
            is_last: bool = index == len(parts) - 1,
        ) -> Any:
            logits = rows.node_logits(outputs.logits)
            reading = None if part is None else part.read(logits, constrained=constrained) + before
            if not is_last:
                return reading
            states = None if states is None else rows.prompt_states(states)
            # Where it is all that there is, not by an index, whose backward pass fills a tensor over the vocabulary.
            root = logits.squeeze(1) if part is None else logits[:, 0]
            final = FinalPosition(root, attention_mask, states, outputs, reading)
            return final if reader is None else reader(final)

        with read_inside(unwrapped, read, hidden_states=hidden_states):
            before = rows.run(model, unwrapped=unwrapped, all_states=hidden_states, **kwargs)
    return before
