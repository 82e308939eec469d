"""How prompts, and the nodes of a trie behind them, are laid out as sequences for the model's forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from raft_peft.forward.attention import DENSE, FlatSequences, masks_of_layers, own_implementation
from raft_peft.grid.trie import NO_NODE, Trie


@dataclass(frozen=True)
class Sequences:
    """Sequences as the model's forward takes them, and where the prompts are in them.

    Attributes:
        input_ids: of shape (sequences, length).
        attention_mask: 1 on real tokens, of shape (sequences, length); or a mask of shape (sequences, 1, length,
            length) in the form that the model's attention takes, or one for each kind of layer; None where the
            positions say it.
        position_ids: of shape (sequences, length); None where they are counted from the mask.
        keep: the positions whose logits are needed: how many of the last, or which.
        nodes: where the root and each node are among these, the sequences of one prompt joined, of shape
            (batch, 1 + nodes); None where the kept positions are the nodes, in order.
        prompts: where each token of the prompts is in the sequences, joined, anywhere for padding, of shape
            (batch, length); None where the sequences are the prompts.
        options: what else the forward takes.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None
    position_ids: torch.Tensor | None
    keep: int | torch.Tensor
    nodes: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def node_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """From the logits of the kept positions to those of the root and each node, (batch, 1 + nodes, vocabulary)."""
        if self.prompts is None:
            return logits
        logits = logits.reshape(len(self.prompts), -1, logits.shape[-1])
        if self.nodes is None:
            return logits
        return logits.gather(1, self.nodes.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def prompt_states(self, states: torch.Tensor) -> torch.Tensor:
        """From the output embeddings of the sequences to those of the prompts, (batch, length, hidden)."""
        return states if self.prompts is None else states.flatten(0, 1)[self.prompts]


# From the model without a wrapper, prompts that are padded on the left, and the trie behind them, to sequences.
Layout = Callable[[Any, torch.Tensor, torch.Tensor, Any], Sequences]


@dataclass(frozen=True)
class Tree:
    """Prompts, padded on the left, with a trie behind each: tokens, positions, and what attends to what."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor
    attends: torch.Tensor

    @classmethod
    def of(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie | None, *, bidirectional: bool = False
    ) -> Tree:
        batch, length = input_ids.shape
        real = attention_mask.bool()
        positions = positions_of(attention_mask)
        if trie is not None:
            input_ids = torch.cat([input_ids, trie.node_ids], dim=1)
            positions = torch.cat([positions, attention_mask.sum(1, keepdim=True) + trie.depths - 1], dim=1)
        size = input_ids.shape[1]
        # Padding attends to itself, since every query needs something to attend to.
        attends = torch.eye(size, dtype=torch.bool, device=real.device).repeat(batch, 1, 1)
        prompt = real.unsqueeze(1)
        if not bidirectional:
            prompt = prompt & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        attends[:, :length, :length] |= prompt
        if trie is not None:
            attends[:, length:, :length] = real.unsqueeze(1)
            attends[:, length:, length:] |= trie.ancestors
            real = torch.cat([real, torch.ones_like(trie.node_ids, dtype=torch.bool)], dim=1)
        return cls(input_ids, positions, real, attends)

    def behind(self, prefix: int) -> torch.Tensor:
        """Which tokens behind as many as the prefix has are real ones that are not of it.

        Of shape (batch, tokens - prefix). In a prompt with padding, the prefix ends further right.
        """
        own = self.real & (self.positions >= prefix)
        return own[:, prefix:]

    def masks_behind(
        self, model: Any, prefix: int, own: torch.Tensor, *, bidirectional: bool = False
    ) -> dict[str, torch.Tensor]:
        """For each kind of layer, what the tokens behind a common prefix attend to in prefix and prompt.

        Of shape (batch, 1, tokens - prefix, tokens).
        """
        attends = self.attends[:, prefix:, prefix:] & own.unsqueeze(1)
        attends |= torch.eye(attends.shape[1], dtype=torch.bool, device=own.device)
        to_prefix = torch.ones(*own.shape, prefix, dtype=torch.bool, device=own.device)
        positions = self.positions[:, prefix:]
        of_prefix = torch.arange(prefix, device=own.device).expand(len(own), -1)
        return masks_of_layers(
            model,
            torch.cat([to_prefix, attends], dim=2),
            positions,
            torch.cat([of_prefix, positions], dim=1),
            bidirectional=bidirectional,
        )


def as_the_forward_takes_them(masks: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
    """One mask where all layers are of one kind, and otherwise one for each kind."""
    return masks if len(masks) > 1 else next(iter(masks.values()))


def padded_sequences(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie | None = None,
    *,
    bidirectional: bool = False,
) -> Sequences:
    """The prompts alone, where every number is one token. Takes what `tree_sequences` does, without a trie."""
    return Sequences(input_ids, attention_mask, None, 1, options={"is_causal": False} if bidirectional else {})


def tree_sequences(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie, *, bidirectional: bool = False
) -> Sequences:
    """All nodes behind the prompt in one sequence, under a tree attention mask.

    Each node attends to the prompt and to the nodes on its own path, and stands at the position that it would have
    alone.

    Args:
        model: the model, without a wrapper.
        input_ids: tokens padded on the left, of shape (batch, length).
        attention_mask: 1 on real tokens, of shape (batch, length).
        trie: of the grid.
        bidirectional: whether the tokens of the prompt attend to all of the prompt.
    """
    tree = Tree.of(input_ids, attention_mask, trie, bidirectional=bidirectional)
    masks = masks_of_layers(model, tree.attends, tree.positions, tree.positions, bidirectional=bidirectional)
    batch, length = input_ids.shape
    places = torch.arange(batch * tree.input_ids.shape[1], device=input_ids.device).view(batch, -1)
    return Sequences(
        tree.input_ids,
        as_the_forward_takes_them(masks),
        tree.positions,
        1 + trie.size,
        None,
        places[:, :length],
    )


def path_sequences(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie) -> Sequences:
    """A sequence for each path of the trie: the prompt, and the tokens to the path's last inner node.

    Takes what `tree_sequences` does.
    """
    paths = trie.paths()
    batch, count, depth = paths.shape
    on_path = (paths != NO_NODE).long()
    tokens = trie.node_ids.gather(1, (paths.clamp(min=1) - 1).flatten(1)).view(paths.shape) * on_path
    input_ids = torch.cat([input_ids.repeat_interleave(count, 0), tokens.flatten(0, 1)], dim=1)
    mask = torch.cat([attention_mask.repeat_interleave(count, 0), on_path.flatten(0, 1)], dim=1)
    kept = torch.arange(count * (1 + depth), device=paths.device).view(count, 1 + depth)
    nodes = torch.zeros(batch, 2 + trie.size, dtype=torch.long, device=paths.device)  # the last for padding
    nodes.scatter_(1, (paths % (2 + trie.size)).flatten(1), kept[:, 1:].reshape(1, -1).expand(batch, -1))
    places = torch.arange(input_ids.numel(), device=paths.device).view(batch, count, -1)
    return Sequences(
        input_ids,
        mask,
        None,
        1 + depth,
        nodes[:, :-1],
        places[:, 0, : attention_mask.shape[1]],
    )


def flat_sequences(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie | None,
    *,
    bidirectional: bool = False,
) -> Sequences:
    """All prompts end to end in one sequence, without padding, and what they begin with in common once.

    Takes what `tree_sequences` does, and None for a trie where every number is one token. FlashAttention tells the
    prompts apart by their positions, and takes neither a trie nor a beginning in common.
    """
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return _flash_sequences(input_ids, attention_mask)
    tree = Tree.of(input_ids, attention_mask, trie, bidirectional=bidirectional)
    length = input_ids.shape[1]
    prefix = 0 if bidirectional else _common_prefix(input_ids, attention_mask)
    # In the prompts themselves the prefix is left out, as is the padding.
    own, positions, ids = tree.behind(prefix), tree.positions[:, prefix:], tree.input_ids[:, prefix:]
    flat_of_padded, padded_of_flat = _flattened(own)

    first = input_ids[0, attention_mask[0].bool()]
    prefix_positions = torch.arange(prefix, device=own.device)
    # A mask of four dimensions is passed on to the attention as it is.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=own.device)
    flat = FlatSequences(
        prefix,
        flat_of_padded,
        padded_of_flat,
        tree.masks_behind(model, prefix, own, bidirectional=bidirectional),
        masks_of_layers(
            model,
            torch.ones(1, prefix, prefix, dtype=torch.bool, device=own.device).tril(),
            prefix_positions[None],
            prefix_positions[None],
        ),
    )
    kept = own.shape[1] - (1 if trie is None else 1 + trie.size)
    of_prompts = torch.where(tree.positions[:, :length] < prefix, tree.positions[:, :length], 0)
    of_prompts[:, prefix:] = torch.where(
        own[:, : length - prefix], prefix + flat_of_padded[:, : length - prefix], of_prompts[:, prefix:]
    )
    return Sequences(
        torch.cat([first[:prefix], ids.flatten()[padded_of_flat]])[None],
        unused_mask,
        torch.cat([prefix_positions, positions.flatten()[padded_of_flat]])[None],
        prefix + flat_of_padded[:, kept:].flatten(),
        None,
        of_prompts,
        {"flat_sequences": flat},
    )


def _flash_sequences(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Sequences:
    flat_of_padded, padded_of_flat = _flattened(attention_mask)
    ids, positions = (one.flatten()[padded_of_flat] for one in (input_ids, positions_of(attention_mask)))
    return Sequences(ids[None], None, positions[None], flat_of_padded[:, -1], None, flat_of_padded)


def _flattened(real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each token of padded prompts is among the real ones laid end to end, 0 for padding, and the inverse.

    Of the shape of the mask, (batch, length), and of shape (real tokens,).
    """
    padded_of_flat = real.flatten().nonzero().flatten()
    flat_of_padded = torch.zeros(real.shape, dtype=torch.long, device=real.device)
    flat_of_padded.view(-1)[padded_of_flat] = torch.arange(len(padded_of_flat), device=real.device)
    return flat_of_padded, padded_of_flat


def _common_prefix(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> int:
    """How many tokens all prompts begin with in common, one less than the shortest has at most."""
    if len(input_ids) == 1:
        return 0
    shortest = int(attention_mask.sum(1).min())
    starts = attention_mask.argmax(1, keepdim=True)
    beginnings = input_ids.gather(1, starts + torch.arange(shortest - 1, device=input_ids.device))
    same = (beginnings == beginnings[:1]).all(0)
    return int(same.long().cumprod(0).sum())


def padded_left(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts with all padding on the left, so that the last real token of each is at the last position."""
    order = attention_mask.argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position of each real token in its prompt, 0 for padding on the left, of the shape of the mask."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)
