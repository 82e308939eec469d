"""One forward pass to the last real token of each prompt, and to the nodes of a trie behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.distribution import GridDistribution, log_probs_of
from raft_peft.forward.layouts import Layout, padded_left, padded_sequences
from raft_peft.forward.model import run
from raft_peft.grid.trie import Trie, TrieReading


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
        tail_log_probs: of the last tokens of each prompt, where they were asked for, in nats, float32, 0 on others, of
            shape (batch, tail).
    """

    logits: torch.Tensor
    attention_mask: torch.Tensor
    hidden_states: torch.Tensor | None
    outputs: Any
    trie: TrieReading | None = None
    tail_log_probs: torch.Tensor | None = None

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


def read_final_position(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie | None = None,
    *,
    layout: Layout = padded_sequences,
    hidden_states: bool = False,
    constrained: bool = False,
    max_nodes: int | None = None,
    tail: torch.Tensor | None = None,
    **kwargs: Any,
) -> FinalPosition:
    """Run the model's own forward, keeping the logits of the final position alone, and of the nodes of a trie.

    The prompts may be padded on either side, or both, with any token.

    Args:
        model: the model, without a wrapper for distributed training, see `model.read_inside`.
        input_ids: tokens of the prompts, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        trie: of the grid; None where every number is one token.
        layout: makes the sequences that the model reads, see `Layout`.
        hidden_states: whether to keep the output embeddings of all positions of the prompts.
        constrained: whether to read what decoding gives that is held to the grid, too.
        max_nodes: read the trie in parts of so many nodes, each with a forward pass of its own; None for one pass.
        tail: which of the last tokens of each prompt are read, too: True for these, of shape (batch, tail), padded on
            the left. Then a sequence of the layout holds one prompt, or all of them.
        kwargs: passed on to the forward.
    """
    input_ids, attention_mask = padded_left(input_ids, attention_mask)
    reading: TrieReading | None = None
    tail_log_probs = None
    for part in [trie] if trie is None or max_nodes is None else trie.parts(max_nodes):
        sequences = layout(model, input_ids, attention_mask, part)
        if tail is not None:
            sequences = sequences.keeping_earlier(tail.shape[1])
        outputs, states = run(model, sequences, hidden_states=hidden_states, **kwargs)
        logits = outputs.logits
        if tail is not None:
            earlier, logits = sequences.split_logits(logits)
            tail_log_probs = log_probs_of_tail(earlier, input_ids, tail)
        logits = sequences.node_logits(logits)
        reading = None if part is None else part.read(logits, constrained=constrained) + reading
    states = None if states is None else sequences.prompt_states(states)
    # Where it is all that there is, not by an index, whose backward pass fills a tensor over the vocabulary.
    root = logits.squeeze(1) if trie is None else logits[:, 0]
    return FinalPosition(root, attention_mask, states, outputs, reading, tail_log_probs)


def log_probs_of_tail(logits: torch.Tensor, input_ids: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """log p of the last tokens of each prompt, 0 where `tail` is not True, of shape (batch, tail).

    Args:
        logits: at the position before each of these tokens, of shape (batch, tail, vocabulary).
        input_ids: tokens of the prompts, padded on the left, of shape (batch, length).
        tail: as in `read_final_position`.
    """
    tokens = input_ids[:, input_ids.shape[1] - tail.shape[1] :].to(logits.device)
    log_probs = log_probs_of(logits, tokens.unsqueeze(-1)).squeeze(-1)
    return log_probs.masked_fill(~tail.to(logits.device), 0)
