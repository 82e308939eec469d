"""The trie of a grid whose numbers are several tokens, and their probabilities as products along its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

NO_TOKEN = -100
NO_NODE = -1
_PREFIX = "trie_"


@dataclass(frozen=True)
class TrieReading:
    """What the logits at the nodes of a trie say of each number, all of shape (batch, grid).

    Attributes:
        log_probs: log p(str(y) | x), see `Trie.log_probs`.
        constrained_log_probs: the same where text is sampled within the grid, see `Trie.constrained_log_probs`; None
            where it was not asked for.
        greedy_misses: how far greedy decoding within the grid is from the number, see `Trie.greedy_misses`; or None.
    """

    log_probs: torch.Tensor
    constrained_log_probs: torch.Tensor | None = None
    greedy_misses: torch.Tensor | None = None

    def __add__(self, other: TrieReading | None) -> TrieReading:
        """What two parts of a trie say together."""
        if other is None:
            return self
        return TrieReading(
            self.log_probs + other.log_probs,
            *(
                None if one is None or two is None else one + two
                for one, two in (
                    (self.constrained_log_probs, other.constrained_log_probs),
                    (self.greedy_misses, other.greedy_misses),
                )
            ),
        )


@dataclass(frozen=True)
class Trie:
    """The tokens of a grid's numbers as paths from a root, for a batch of prompts.

    An inner node is a beginning that some number goes on from: the model must say what follows there. The root, node
    0, is the prompt itself; the others stand in depth-first order. All rows have the shape of the largest.

    Attributes:
        token_ids: the tokens of each number, padded on the right with -100, of shape (batch, grid, depth).
        nodes: for each of them the node that it follows, of shape (batch, grid, depth); 0 on padding.
        end_nodes: the nodes at which a number ends and others go on, of shape (batch, ends); 0 on padding.
        ends: for each number which of these is its own, -1 where none is, of shape (batch, grid).
        node_ids: the token that leads to each node but the root, of shape (batch, nodes).
        depths: how many tokens each is away from the root, 1 or more, of shape (batch, nodes).
        ancestors: whether node j is node i or lies on its path, of shape (batch, nodes i, nodes j).
    """

    token_ids: torch.Tensor
    nodes: torch.Tensor
    end_nodes: torch.Tensor
    ends: torch.Tensor
    node_ids: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor

    @classmethod
    def of(cls, grids: Sequence[tuple[tuple[int, ...], ...]]) -> Trie:
        """From the tokens of each number, for each row."""
        rows = [_trie_of_row(token_ids) for token_ids in grids]
        # As a rule they are one object, since what was looked up is kept.
        if all(row is rows[0] for row in rows):
            return cls(**{name: torch.stack([part] * len(rows)) for name, part in rows[0].items()})
        fills = {"token_ids": NO_TOKEN, "ends": NO_NODE, "depths": 1}
        return cls(**{name: _stack([row[name] for row in rows], fills.get(name, 0)) for name in rows[0]})

    @classmethod
    def in_batch(cls, batch: Mapping[str, Any]) -> Trie | None:
        """The trie that a batch holds; None where every number is one token."""
        names = [part.name for part in fields(cls)]
        if _PREFIX + names[0] not in batch:
            return None
        return cls(**{name: batch[_PREFIX + name] for name in names})

    def as_batch(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, so that they travel with a batch."""
        return {_PREFIX + part.name: getattr(self, part.name) for part in fields(self)}

    def to(self, device: torch.device) -> Trie:
        return Trie(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})

    @property
    def size(self) -> int:
        """How many nodes there are beside the root."""
        return self.node_ids.shape[1]

    def read(self, logits: torch.Tensor, *, constrained: bool = False) -> TrieReading:
        """All that the logits, of shape (batch, 1 + nodes, vocabulary), say."""
        if not constrained:
            return TrieReading(self.log_probs(logits))
        return TrieReading(self.log_probs(logits), self.constrained_log_probs(logits), self.greedy_misses(logits))

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """log p(str(y) | x) of each number, the sum over its tokens (the paper's eq. 10).

        Where others begin with it, the probability is that of its tokens times 1 - sum of p(next token | x, y) over
        the tokens with which they go on. So the numbers are disjoint events, and sum to at most one.

        Args:
            logits: of the next token at the root and at each node, of shape (batch, 1 + nodes, vocabulary).

        Returns:
            In nats, float32, of shape (batch, grid).
        """
        logits = logits.float()
        total = logits.logsumexp(-1)
        log_probs = self._along_paths(self._of_tokens(logits) - self._at_nodes(total))
        if self.end_nodes.shape[1] == 0:
            return log_probs
        return log_probs + self._at_ends(self._stopping(logits).logsumexp(-1) - total.gather(1, self.end_nodes))

    def constrained_log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-probability of each number where text is sampled with all but the grid ruled out at every token.

        Takes and gives what `log_probs` does; the probabilities sum to one.
        """
        logits = logits.float()
        going_on = logits.masked_fill(~self._goes_on(logits), -torch.inf).logsumexp(-1)
        stopping = self._stopping(logits).logsumexp(-1)
        total_at_ends = going_on.gather(1, self.end_nodes).logaddexp(stopping)
        total = torch.where(self._is_end(), logits.logsumexp(-1), going_on)
        along_paths = self._along_paths(self._of_tokens(logits) - self._at_nodes(total))
        return along_paths + self._at_ends(stopping - total_at_ends)

    def greedy_misses(self, logits: torch.Tensor) -> torch.Tensor:
        """How many tokens of each number are not the most likely that the grid allows there; its end counts as one.

        The number that greedy decoding gives, with all but the grid ruled out at every token, has none. Takes what
        `log_probs` does and gives counts, of shape (batch, grid).
        """
        logits = logits.float()
        likeliest = logits.masked_fill(~self._goes_on(logits), -torch.inf).amax(-1)
        stops_at_ends = self._stopping(logits).amax(-1) > likeliest.gather(1, self.end_nodes)
        stops = torch.zeros_like(likeliest, dtype=torch.bool).scatter(1, self.end_nodes, stops_at_ends)
        stops &= self._is_end()
        missed = (self._of_tokens(logits) < self._at_nodes(likeliest)) | self._at_nodes(stops)
        return (missed & (self.token_ids != NO_TOKEN)).sum(-1) + self._at_ends((~stops_at_ends).long())

    def parts(self, size: int) -> list[Trie]:
        """The trie in chunks of so many nodes."""
        nodes = 1 + self.size
        if size >= nodes:
            return [self]
        return [self.chunk(first, min(first + size, nodes)) for first in range(0, nodes, size)]

    def chunk(self, first: int, last: int) -> Trie:
        """The part of the trie that the nodes first to last - 1 speak of, the root being node 0.

        What it says of each number is a part of the sum, or of the count; the parts of all chunks make the whole.
        """
        columns = self.ancestors.shape[-1]
        own = torch.zeros(columns + 1, dtype=torch.bool, device=self.nodes.device)
        own[first:last] = True
        kept = own[1:].clone()
        if first > 0:
            kept |= self.ancestors[:, first - 1].any(0)  # in depth-first order all others are in the chunk itself
        places = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.cumsum(0)])
        return replace(
            self,
            token_ids=self.token_ids.masked_fill(~own[self.nodes], NO_TOKEN),
            nodes=places[self.nodes].where(own[self.nodes], 0),
            end_nodes=places[self.end_nodes].where(own[self.end_nodes], 0),
            ends=self.ends.where(self._at_ends(own[self.end_nodes].long()).bool(), NO_NODE),
            node_ids=self.node_ids[:, kept],
            depths=self.depths[:, kept],
            ancestors=self.ancestors[:, kept][:, :, kept],
        )

    def paths(self) -> torch.Tensor:
        """The nodes on the way to each last inner node, padded with -1, of shape (batch, paths, depth)."""
        ways = []
        for ancestors in self.ancestors:
            last = ancestors.sum(0) == 1  # on no path but its own
            ways.append([ancestors[node].nonzero().flatten() + 1 for node in last.nonzero().flatten()])
        paths = self.nodes.new_full(
            (len(ways), max(map(len, ways)), max(len(way) for row in ways for way in row)), NO_NODE
        )
        for row, ways_of_row in enumerate(ways):
            for index, way in enumerate(ways_of_row):
                paths[row, index, : len(way)] = way
        return paths

    def _of_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """The logit of each token of each number, of shape (batch, grid, depth)."""
        index = self.nodes * logits.shape[-1] + self.token_ids.clamp(min=0)
        return logits.flatten(1).gather(1, index.flatten(1)).view(index.shape)

    def _at_nodes(self, of_nodes: torch.Tensor) -> torch.Tensor:
        """What is said of each node, (batch, 1 + nodes), for each token that follows it, (batch, grid, depth)."""
        return of_nodes.gather(1, self.nodes.flatten(1)).view(self.nodes.shape)

    def _along_paths(self, of_tokens: torch.Tensor) -> torch.Tensor:
        return of_tokens.masked_fill(self.token_ids == NO_TOKEN, 0).sum(-1)

    def _at_ends(self, of_ends: torch.Tensor) -> torch.Tensor:
        """What is said of each end, (batch, ends), for its number, 0 for those without, of shape (batch, grid)."""
        if of_ends.shape[1] == 0:
            return of_ends.new_zeros(self.ends.shape)
        return of_ends.gather(1, self.ends.clamp(min=0)).masked_fill(self.ends == NO_NODE, 0)

    def _is_end(self) -> torch.Tensor:
        """Whether a number ends at each node, of shape (batch, 1 + nodes)."""
        found = torch.zeros(len(self.ends), 1 + self.size, dtype=torch.bool, device=self.ends.device)
        found = found.scatter(1, self.end_nodes, True)
        found[:, 0] = False  # the root is the padding, and no number ends before it begins
        return found

    def _goes_on(self, logits: torch.Tensor) -> torch.Tensor:
        """Whether some number goes on with each token of the vocabulary, of the shape of the logits."""
        batch, nodes, vocabulary = logits.shape
        index = self.nodes * vocabulary + self.token_ids
        index = index.where(self.token_ids != NO_TOKEN, nodes * vocabulary)
        found = torch.zeros(batch, nodes * vocabulary + 1, dtype=torch.bool, device=logits.device)
        return found.scatter(1, index.flatten(1), True)[:, :-1].view(logits.shape)

    def _stopping(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits at each end without those with which a number goes on, of shape (batch, ends, vocabulary).

        In place of 1 - p, which would lose its digits where p is close to 1.
        """
        index = self.end_nodes.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        return logits.gather(1, index).masked_fill(self._goes_on(logits).gather(1, index), -torch.inf)


def is_deep(token_ids: Sequence[Sequence[int]]) -> bool:
    """Whether some number is more than one token."""
    return any(len(ids) > 1 for ids in token_ids)


@lru_cache(maxsize=256)
def _trie_of_row(token_ids: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    beginnings = sorted({ids[:length] for ids in token_ids for length in range(1, len(ids))})
    node_of = {(): 0, **{beginning: node for node, beginning in enumerate(beginnings, 1)}}
    ancestors = torch.zeros(len(beginnings), len(beginnings), dtype=torch.bool)
    for beginning, node in list(node_of.items())[1:]:
        for length in range(1, len(beginning) + 1):
            ancestors[node - 1, node_of[beginning[:length]] - 1] = True
    depth = max(map(len, token_ids))
    ended = {ids: index for index, ids in enumerate(ids for ids in token_ids if ids in node_of)}
    return {
        "token_ids": torch.tensor([[*ids, *[NO_TOKEN] * (depth - len(ids))] for ids in token_ids]),
        "nodes": torch.tensor(
            [[*(node_of[ids[:length]] for length in range(len(ids))), *[0] * (depth - len(ids))] for ids in token_ids]
        ),
        "end_nodes": torch.tensor([node_of[ids] for ids in token_ids if ids in node_of], dtype=torch.long),
        "ends": torch.tensor([ended.get(ids, NO_NODE) for ids in token_ids]),
        "node_ids": torch.tensor([beginning[-1] for beginning in beginnings], dtype=torch.long),
        "depths": torch.tensor([len(beginning) for beginning in beginnings], dtype=torch.long),
        "ancestors": ancestors,
    }


def _stack(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    stacked = parts[0].new_full((len(parts), *shape), fill)
    for row, part in enumerate(parts):
        stacked[row][tuple(slice(size) for size in part.shape)] = part
    return stacked
