"""How prompts, and the nodes of a trie behind them, are laid out as sequences for the model's forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from raft_peft.forward.attention import DENSE, FlatSequences, masks_of_layers, own_implementation
from raft_peft.forward.forest import Forest, Groups, Padding, common_prefix, group_prompts, token_cost_of
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
        nodes: where the root and each node are among these, the sequences joined, of shape (batch, 1 + nodes); None
            where the kept positions are the nodes, in order.
        prompts: where each token of the prompts is in the sequences, joined, anywhere for padding, of shape
            (batch, length); None where the sequences are the prompts.
        options: what else the forward takes.
        earlier: how many positions before the last of each prompt are kept, too; they come first.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None
    position_ids: torch.Tensor | None
    keep: int | torch.Tensor
    nodes: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    earlier: int = 0

    def keeping_earlier(self, count: int) -> Sequences:
        """The same, with the logits of so many more positions kept: those before the last of each prompt.

        Each sequence holds one prompt, or one sequence all of them.
        """
        if isinstance(self.keep, int):
            return replace(self, keep=self.keep + count, earlier=count)
        assert self.prompts is not None
        return replace(self, keep=torch.cat([self.prompts[:, -1 - count : -1].flatten(), self.keep]), earlier=count)

    def split_logits(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of the earlier positions of each prompt, of shape (batch, earlier, vocabulary), and the rest."""
        if isinstance(self.keep, int):
            # A prompt with several paths is in as many sequences.
            copies = 1 if self.prompts is None else len(logits) // len(self.prompts)
            return logits[::copies, : self.earlier], logits[:, self.earlier :]
        assert self.prompts is not None
        count = len(self.prompts) * self.earlier
        return logits[0, :count].unflatten(0, (len(self.prompts), self.earlier)), logits[:, count:]

    def node_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """From the logits of the kept positions to those of the root and each node, (batch, 1 + nodes, vocabulary)."""
        vocabulary = logits.shape[-1]
        if self.nodes is not None:
            return logits.reshape(-1, vocabulary)[self.nodes]
        return logits if self.prompts is None else logits.reshape(len(self.prompts), -1, vocabulary)

    def prompt_states(self, states: torch.Tensor) -> torch.Tensor:
        """From the output embeddings of the sequences to those of the prompts, (batch, length, hidden)."""
        return states if self.prompts is None else states.flatten(0, 1)[self.prompts]


# From the model without a wrapper, prompts that are padded on the left, and the trie behind them, to sequences.
Layout = Callable[[Any, torch.Tensor, torch.Tensor, Any], Sequences]


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
    forest = Forest.of(input_ids, attention_mask, trie, bidirectional=bidirectional)
    return _rows_of(forest, forest.masks(model, bidirectional=bidirectional), grouped=False)


def grouped_sequences(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie | None
) -> Sequences:
    """A sequence for each group of prompts that share a beginning, with this in it once, under a tree attention mask.

    Takes what `tree_sequences` does, and None for a trie where every number is one token.
    """
    groups = groups_of(model, input_ids, attention_mask, trie=trie)
    if trie is None and not groups.share:
        return padded_sequences(model, input_ids, attention_mask)
    forest = Forest.of(input_ids, attention_mask, trie, groups=groups)
    return _rows_of(forest, forest.masks(model), grouped=True)


def _rows_of(forest: Forest, masks: dict[str, torch.Tensor], *, grouped: bool) -> Sequences:
    return Sequences(
        forest.input_ids,
        as_the_forward_takes_them(masks),
        forest.positions,
        forest.keep,
        forest.kept_nodes if grouped else None,
        forest.prompts,
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
    nodes += kept.numel() * torch.arange(batch, device=paths.device).unsqueeze(1)
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

    Takes what `tree_sequences` does, and None for a trie where every number is one token. What all prompts begin with
    stands before them; what only some of them share, before these. FlashAttention tells the prompts apart by their
    positions, and takes neither a trie nor a beginning in common.
    """
    config = model.config.get_text_config()
    if own_implementation(config) not in DENSE:
        return _flash_sequences(input_ids, attention_mask)
    prefix, groups = 0, None
    if not bidirectional and len(input_ids) > 1:
        prompts = zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)
        prefix = len(common_prefix([ids[real].tolist() for ids, real in prompts]))
        groups = groups_of(model, input_ids, attention_mask, prefix=prefix, trie=trie, padding="attention")
    forest = Forest.of(input_ids, attention_mask, trie, prefix=prefix, groups=groups, bidirectional=bidirectional)
    flat_of_padded, padded_of_flat = _flattened(forest.real)
    first = input_ids[0, attention_mask[0].bool()]
    prefix_positions = torch.arange(prefix, device=first.device)
    # A mask of four dimensions is passed on to the attention as it is.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=first.device)
    flat = FlatSequences(
        prefix,
        flat_of_padded,
        padded_of_flat,
        forest.masks(model, prefix, bidirectional=bidirectional),
        masks_of_layers(
            model,
            torch.ones(1, prefix, prefix, dtype=torch.bool, device=first.device).tril(),
            prefix_positions[None],
            prefix_positions[None],
        ),
    )
    of_prompts, positions = prefix + flat_of_padded.flatten()[forest.prompts], positions_of(attention_mask)
    return Sequences(
        torch.cat([first[:prefix], forest.input_ids.flatten()[padded_of_flat]])[None],
        unused_mask,
        torch.cat([prefix_positions, forest.positions.flatten()[padded_of_flat]])[None],
        prefix + flat_of_padded.flatten()[forest.nodes].flatten(),
        None,
        of_prompts.where(positions >= prefix, positions),
        {"flat_sequences": flat},
    )


def groups_of(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    prefix: int = 0,
    trie: Trie | None = None,
    padding: Padding = "rows",
) -> Groups:
    """The groups in which a batch of prompts, padded on the left, costs least behind their common beginning."""
    ids, lengths = input_ids.cpu().numpy(), attention_mask.sum(1).tolist()
    return group_prompts(
        [row[len(row) - length + prefix :] for row, length in zip(ids, lengths, strict=True)],
        prefix=prefix,
        token_cost=token_cost_of(model),
        extra=0 if trie is None else trie.size,
        padding=padding,
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


def padded_left(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts with all padding on the left, so that the last real token of each is at the last position."""
    order = attention_mask.argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position of each real token in its prompt, 0 for padding on the left, of the shape of the mask."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)
