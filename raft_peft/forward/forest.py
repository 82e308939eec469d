"""Prompts that begin alike, as a forest: what they share stands in a row of tokens once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raft_peft.forward.attention import masks_of_layers
from raft_peft.grid.trie import Trie

Padding = Literal["rows", "attention", "nothing"]

# A smaller gain is not worth the masks of a tree.
_WORTH_IT = 0.95


@dataclass(frozen=True)
class Groups:
    """Prompts in an order in which those that share a beginning stand together.

    Attributes:
        order: the index of each prompt, of shape (prompts,).
        shared: how many tokens each begins with as the one before it does, 0 at the first of a group, of shape
            (prompts,). The last token of a prompt is always its own.
        starts: whether each is the first of a group, of shape (prompts,).
    """

    order: np.ndarray
    shared: np.ndarray
    starts: np.ndarray

    def __iter__(self) -> Any:
        """The positions in the order of the prompts of each group."""
        return iter(np.split(np.arange(len(self.order)), np.flatnonzero(self.starts)[1:]))

    @property
    def share(self) -> bool:
        """Whether any prompt shares something."""
        return bool(self.shared.any())


def apart(prompts: int) -> Groups:
    """Groups of one prompt each."""
    return Groups(np.arange(prompts), np.zeros(prompts, dtype=np.int64), np.ones(prompts, dtype=bool))


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, one less than the shortest has at most."""
    first, last = min(prompts), max(prompts)  # all others lie between, and so begin as these two do
    length = 0
    for one, other in zip(first[: min(map(len, prompts)) - 1], last, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]


def group_prompts(
    prompts: Sequence[np.ndarray], *, prefix: int, token_cost: int, extra: int = 0, padding: Padding = "rows"
) -> Groups:
    """The groups in which the tokens and the attention of all prompts cost least.

    Prompts that share at least so many tokens are a group; of all such numbers the best is taken. A token that is
    shared is computed once, but each token of a group meets all tokens of it in the attention, and is masked there.

    Args:
        prompts: the token ids of each, behind what all of them begin with.
        prefix: how many tokens all of them begin with.
        token_cost: what a token costs, in pairs of tokens that meet in the attention, see `token_cost_of`.
        extra: how many tokens stand behind each prompt.
        padding: what is padded to the longest group: `"rows"`, the `"attention"` alone, or `"nothing"`.
    """
    order = np.array(sorted(range(len(prompts)), key=lambda index: prompts[index].astype(">i4").tobytes()))
    lengths = np.array([len(prompts[index]) for index in order])
    shared = _shared_with_previous([prompts[index] for index in order], lengths)
    best, groups = np.inf, apart(len(prompts))
    # The first is more than any prompts share.
    for least in [int(lengths.max()) + 1, *np.unique(shared[shared > 0])[::-1].tolist()]:
        starts = shared < least
        kept = np.where(starts, 0, shared)
        sizes = np.add.reduceat(lengths + extra - kept, np.flatnonzero(starts))
        longest = np.full_like(sizes, sizes.max())
        tokens = longest if padding == "rows" else sizes
        attended = sizes if padding == "nothing" else longest
        cost = token_cost * tokens.sum() + (attended * (prefix + attended)).sum()
        if best == np.inf:
            best = _WORTH_IT * cost
        elif cost < best:
            best, groups = cost, Groups(order, kept, starts)
    return groups


def _shared_with_previous(prompts: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    tokens = np.full((len(prompts), int(lengths.max()) + 1), -1, dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    # Where they are equal throughout, the padding behind them is too: each keeps its last token for itself.
    same = np.cumprod(tokens[1:] == tokens[:-1], axis=1).sum(1)
    return np.concatenate([[0], np.minimum(same, np.minimum(lengths[1:], lengths[:-1]) - 1)]).astype(np.int64)


def token_cost_of(model: Any) -> int:
    """What a token costs in a layer, in pairs of tokens that meet in its attention.

    A layer has about 12 hidden² parameters, so that a token takes 24 hidden² operations, and a pair 4 hidden.
    """
    return 6 * model.config.get_text_config().hidden_size


@dataclass(frozen=True)
class Forest:
    """Rows of tokens, padded on the left: in each a group of prompts, with a trie behind each prompt.

    A row ends with the last token of each of its prompts, its nodes behind it.

    Attributes:
        input_ids: of shape (rows, length).
        positions: of each token in its prompt, 0 on padding, of shape (rows, length).
        real: whether a token is one, and not padding, of shape (rows, length).
        attends: whether each token attends to each, of shape (rows, length, length).
        prompts: where each token of each prompt behind the prefix is in the rows, joined, anywhere for padding and
            prefix, of shape (batch, prompt length).
        nodes: where the last token of each prompt and its nodes are in the rows, joined, of shape (batch, 1 + nodes).
        keep: how many tokens at the end of the rows hold all of these.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor
    attends: torch.Tensor
    prompts: torch.Tensor
    nodes: torch.Tensor
    keep: int

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        trie: Trie | None,
        *,
        prefix: int = 0,
        groups: Groups | None = None,
        bidirectional: bool = False,
    ) -> Forest:
        """Lay out the prompts.

        Args:
            input_ids: tokens padded on the left, of shape (batch, length).
            attention_mask: 1 on real tokens, of shape (batch, length).
            trie: of the grid; None where every number is one token.
            prefix: how many tokens all prompts begin with. They are left out.
            groups: the prompts of each row; None for one prompt a row.
            bidirectional: whether the tokens of a prompt attend to all of it; then nothing is shared.
        """
        plan = _Plan(input_ids, attention_mask, 0 if trie is None else trie.size, prefix, groups)
        device = input_ids.device
        ids, positions, first, end, prompts, nodes = (torch.from_numpy(array).to(device) for array in plan.arrays())
        real = end > 0
        if trie is not None:
            ids.view(-1)[nodes[:, 1:]] = trie.node_ids
            positions.view(-1)[nodes[:, 1:]] = attention_mask.sum(1, keepdim=True) + trie.depths - 1
        # A token belongs to the prompts from `first` to `end`; those of a token on its way to the root include them.
        of_prompt = first.unsqueeze(2)
        attends = (first.unsqueeze(1) <= of_prompt) & (of_prompt < end.unsqueeze(1))
        earlier = positions.unsqueeze(1) <= positions.unsqueeze(2)
        if bidirectional:
            in_prompt = torch.ones_like(real)
            in_prompt.view(-1)[nodes[:, 1:]] = False
            earlier |= in_prompt.unsqueeze(1) & in_prompt.unsqueeze(2)
        attends &= earlier
        length = ids.shape[1]
        if trie is not None:
            row, place = nodes[:, 1:] // length, nodes[:, 1:] % length
            attends[row.unsqueeze(2), place.unsqueeze(2), place.unsqueeze(1)] = trie.ancestors
        # Padding attends to itself, since every query needs something to attend to.
        attends |= torch.eye(length, dtype=torch.bool, device=device)
        return cls(ids, positions, real, attends, prompts, nodes, plan.keep)

    @property
    def kept_nodes(self) -> torch.Tensor:
        """Where the nodes are in the tokens that are kept, joined, of shape (batch, 1 + nodes)."""
        length = self.input_ids.shape[1]
        return self.nodes // length * self.keep + self.nodes % length - (length - self.keep)

    def masks(self, model: Any, prefix: int = 0, *, bidirectional: bool = False) -> dict[str, torch.Tensor]:
        """What the tokens attend to in prefix and row for each kind of layer, of shape (rows, 1, length, prefix +
        length)."""
        to_prefix = torch.ones(*self.real.shape, prefix, dtype=torch.bool, device=self.real.device)
        of_prefix = torch.arange(prefix, device=self.real.device).expand(len(self.real), -1)
        return masks_of_layers(
            model,
            torch.cat([to_prefix, self.attends], dim=2),
            self.positions,
            torch.cat([of_prefix, self.positions], dim=1),
            bidirectional=bidirectional,
        )


class _Plan:
    """Where every token of a batch goes."""

    def __init__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        nodes: int,
        prefix: int,
        groups: Groups | None,
    ):
        self._ids = input_ids.cpu().numpy()
        self._lengths = attention_mask.sum(1).cpu().numpy() - prefix
        self._nodes, self._prefix = nodes, prefix
        self._groups = apart(len(input_ids)) if groups is None else groups
        self.keep = (1 + nodes) * max(len(group) for group in self._groups)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """`input_ids`, `positions`, the first and the last prompt of each token, `prompts`, and `nodes`."""
        of_order = self._lengths[self._groups.order]
        sizes = [int((of_order[group] + self._nodes - self._groups.shared[group]).sum()) for group in self._groups]
        length = max(sizes)
        ids, positions, first, end = (np.zeros((len(sizes), length), dtype=np.int64) for _ in range(4))
        prompts = np.zeros(self._ids.shape, dtype=np.int64)
        nodes = np.zeros((len(self._ids), 1 + self._nodes), dtype=np.int64)
        for row, (group, size) in enumerate(zip(self._groups, sizes, strict=True)):
            begin = (row + 1) * length - size
            ends_at = (row + 1) * length - len(group) * (1 + self._nodes)
            before = np.zeros(0, dtype=np.int64)
            for rank in group:
                prompt, shared = self._groups.order[rank], self._groups.shared[rank]
                own = int(self._lengths[prompt]) - 1 - shared
                places = np.concatenate([before[:shared], np.arange(begin, begin + own), [ends_at]])
                nodes[prompt] = ends_at + np.arange(1 + self._nodes)
                begin, ends_at, before = begin + own, ends_at + 1 + self._nodes, places
                new = np.concatenate([places[shared:], nodes[prompt, 1:]])
                ids.flat[places] = self._ids[prompt, self._ids.shape[1] - len(places) :]
                positions.flat[places] = self._prefix + np.arange(len(places))
                first.flat[new] = rank
                end.flat[places], end.flat[nodes[prompt, 1:]] = rank + 1, rank + 1
                prompts[prompt, self._ids.shape[1] - len(places) :] = places
        return ids, positions, first, end, prompts, nodes
