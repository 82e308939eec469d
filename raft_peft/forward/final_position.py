"""One forward pass to the last real token of each prompt, and to the nodes of a trie behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.distribution import GridDistribution
from raft_peft.forward.layouts import Layout, Rows, padded_left, padded_rows
from raft_peft.forward.model import _backbone, run
from raft_peft.grid.trie import Trie, TrieReading


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
            before = run(model, rows, unwrapped=unwrapped, all_states=hidden_states, **kwargs)
    return before


@dataclass(frozen=True)
class FinalPosition:
    """What the model says at the last real token of each row.

    Attributes:
        logits: over the vocabulary, of shape (batch, vocabulary).
        attention_mask: 1 on real tokens, 0 on padding, which is on the left, of shape (batch, length).
        hidden_states: the output embeddings of all positions, before the head over the vocabulary, of shape
            (batch, length, hidden); None where they were not asked for.
        outputs: all that the model returned.
        trie: what the model says of the grid's numbers, where some are several tokens; else None.
    """

    logits: torch.Tensor
    attention_mask: torch.Tensor
    hidden_states: torch.Tensor | None
    outputs: Any
    trie: TrieReading | None = None

    def distribution(self, grid_token_ids: torch.Tensor, values: torch.Tensor) -> GridDistribution:
        """The distribution over the grid, whether its values are one token each or several.

        Args:
            grid_token_ids: the token of each grid value, of shape (batch, grid), or where some are several tokens,
                all of them, of shape (batch, grid, depth).
            values: the grid's numbers, of shape (grid,).
        """
        if self.trie is None and grid_token_ids.dim() == 3:
            raise ValueError(
                "Some numbers of the grid are several tokens, and their probabilities were not read. Set the class "
                "attribute `reads_grid = True` on the head."
            )
        if self.trie is None:
            return GridDistribution.from_logits(self.logits, grid_token_ids, values)
        return GridDistribution(self.trie.log_probs, values)


@contextmanager
def read_inside(
    model: Any, read: Callable[[Any, torch.Tensor | None], Any], *, hidden_states: bool = False
) -> Iterator[None]:
    """Let the model's forward return what is read off its outputs, instead of these.

    Args:
        model: the model, without a wrapper.
        read: from its outputs, and its output embeddings of shape (batch, length, hidden) where they are kept.
        hidden_states: whether to keep them.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        kept.append(output[0])

    def replace(_module: Any, _arguments: Any, outputs: Any) -> Any:
        return read(outputs, kept[0] if kept else None)

    hooks = [model.register_forward_hook(replace)]
    if hidden_states:
        hooks.append(_backbone(model).register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
