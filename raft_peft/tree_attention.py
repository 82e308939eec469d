"""One forward pass for a whole trie of numbers.

Its nodes follow the prompt in one row. Each attends to the prompt and to the nodes on its own path, and stands at the
position it would have alone, so that the logits at every node are those of prompt and path by themselves. Where a
model cannot take such a mask, every path becomes a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from raft_peft.final_position import FinalPosition, last_logits, padded_left, read_inside
from raft_peft.trie import NO_NODE, Trie, TrieReading

# What the layers of a model may attend to, in transformers' words, where a dense mask can say it.
_FULL, _SLIDING = "full_attention", "sliding_attention"
_DENSE_MASKS = ("eager", "sdpa")


@dataclass(frozen=True)
class TrieRows:
    """A batch of prompts with the nodes of a trie behind them, as the model's forward takes it.

    Attributes:
        input_ids: of shape (rows, length).
        attention_mask: 1 on real tokens, of shape (rows, length); or for each kind of layer a mask of shape
            (rows, 1, length, length), in the form that the model's attention takes.
        position_ids: of shape (rows, length).
        keep: how many of the last columns hold what the trie needs.
        places: where the root and each node are in these columns, rows of one prompt joined, of shape
            (batch, 1 + nodes).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | dict[str, torch.Tensor]
    position_ids: torch.Tensor
    keep: int
    places: torch.Tensor

    def run(self, model: Any, **kwargs: Any) -> Any:
        """The model's outputs, with the logits of the last columns alone."""
        return last_logits(
            model, self.input_ids, self.attention_mask, self.keep, position_ids=self.position_ids, **kwargs
        )

    def node_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """From the logits of the last columns to those of the root and each node, (batch, 1 + nodes, vocabulary)."""
        batch, nodes = self.places.shape
        joined = logits.reshape(batch, -1, logits.shape[-1])
        if joined.shape[1] == nodes:  # a row a prompt, whose columns are the nodes already
            return joined
        return joined.gather(1, self.places.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def tree_rows(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie, *, bidirectional: bool = False
) -> TrieRows:
    """All nodes behind the prompt in one row, under a tree attention mask.

    Args:
        model: the model, without a wrapper.
        input_ids: tokens padded on the left, of shape (batch, length).
        attention_mask: 1 on real tokens, of shape (batch, length).
        trie: of the grid.
        bidirectional: whether the tokens of the prompt attend to all of the prompt.
    """
    batch, length = input_ids.shape
    real = attention_mask.bool()
    size = length + trie.size
    attends = torch.eye(size, dtype=torch.bool, device=input_ids.device).repeat(batch, 1, 1)
    prompt = real.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    attends[:, :length, :length] |= prompt if bidirectional else prompt & causal
    attends[:, length:, :length] = prompt
    attends[:, length:, length:] |= trie.ancestors
    positions = torch.cat(
        [
            (attention_mask.cumsum(1) - 1).clamp(min=0),
            attention_mask.sum(1, keepdim=True) + trie.depths - 1,
        ],
        dim=1,
    )
    return TrieRows(
        torch.cat([input_ids, trie.node_ids], dim=1),
        _masks(model, attends, positions),
        positions,
        1 + trie.size,
        torch.arange(1 + trie.size, device=input_ids.device).expand(batch, -1),
    )


def path_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, trie: Trie) -> TrieRows:
    """A row for each path of the trie, the prompt and the tokens to the path's last inner node. Takes what
    `tree_rows` does."""
    paths = trie.paths()
    batch, count, depth = paths.shape
    on_path = (paths != NO_NODE).long()
    tokens = trie.node_ids.gather(1, (paths.clamp(min=1) - 1).flatten(1)).view(paths.shape)
    repeated = attention_mask.repeat_interleave(count, 0)
    mask = torch.cat([repeated, on_path.flatten(0, 1)], dim=1)
    columns = torch.arange(count * (1 + depth), device=paths.device).view(count, 1 + depth)
    places = torch.zeros(batch, 2 + trie.size, dtype=torch.long, device=paths.device)
    places.scatter_(1, (paths % (2 + trie.size)).flatten(1), columns[:, 1:].reshape(1, -1).expand(batch, -1))
    places[:, 0] = 0
    return TrieRows(
        torch.cat([input_ids.repeat_interleave(count, 0), (tokens * on_path).flatten(0, 1)], dim=1),
        mask,
        (mask.cumsum(1) - 1).clamp(min=0),
        1 + depth,
        places[:, :-1],
    )


def why_not_a_tree(model: Any) -> str | None:
    """Why the model cannot read a trie in one row; None where it can.

    It is tried: on two short prompts, and with windows shorter than these, the tree must give the logits that the
    paths give by themselves.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in _DENSE_MASKS:
        return f"its attention implementation is {config._attn_implementation!r}"
    kinds = _kinds_of_layers(config)
    if not kinds <= {_FULL, _SLIDING}:
        return f"it has layers of the kind {sorted(kinds - {_FULL, _SLIDING})[0]!r}"
    device = model.get_input_embeddings().weight.device
    input_ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]], device=device)
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], device=device)
    trie = Trie.of([((1, 2, 3), (1, 4), (2, 5), (3,))] * 2).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _window(config, 4):
            in_tree, alone = (
                rows.node_logits(rows.run(model).logits).float().log_softmax(-1)[..., :8]
                for rows in (
                    tree_rows(model, input_ids, attention_mask, trie),
                    path_rows(input_ids, attention_mask, trie),
                )
            )
    except Exception as error:
        return f"its forward does not take a mask for each pair of tokens ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(in_tree, alone, rtol=tolerance, atol=tolerance * float(alone.std())):
        return "its numbers change under a mask for each pair of tokens"
    return None


def read_trie(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie,
    reader: Callable[[FinalPosition], Any],
    *,
    one_row: bool,
    unwrapped: Any = None,
    bidirectional: bool = False,
    hidden_states: bool = False,
    constrained: bool = False,
    max_nodes: int | None = None,
    **kwargs: Any,
) -> Any:
    """Run the model's own forward over the prompts and a trie behind each.

    Args:
        model: the model to call, possibly wrapped for distributed training.
        input_ids: tokens of the prompts, of shape (batch, length).
        attention_mask: 1 on real tokens and 0 on padding, of shape (batch, length).
        trie: of the grid.
        reader: what to make of the final position, which holds the trie's reading; see `read_final_position`.
        one_row: whether the trie stands in one row with the prompt, or each of its paths in a row of its own.
        unwrapped: the model without its wrapper, where it has one.
        bidirectional: whether the tokens of the prompt attend to all of the prompt.
        hidden_states: whether to keep the output embeddings of the prompt.
        constrained: whether to read what decoding gives that is held to the grid, too.
        max_nodes: read the trie in parts of so many nodes, each with a forward pass of its own; None for one pass.
        kwargs: passed on to the forward.

    Returns:
        What the reader gave.
    """
    input_ids, attention_mask = padded_left(input_ids, attention_mask)
    unwrapped = model if unwrapped is None else unwrapped
    nodes = 1 + trie.size
    step = nodes if max_nodes is None else max_nodes
    before: TrieReading | None = None
    for first in range(0, nodes, step):
        part = trie if step >= nodes else trie.chunk(first, min(first + step, nodes))
        if one_row:
            rows = tree_rows(unwrapped, input_ids, attention_mask, part, bidirectional=bidirectional)
        else:
            rows = path_rows(input_ids, attention_mask, part)

        def read(
            outputs: Any,
            states: torch.Tensor | None,
            part: Trie = part,
            rows: TrieRows = rows,
            before: TrieReading | None = before,
            is_last: bool = first + step >= nodes,
        ) -> Any:
            logits = rows.node_logits(outputs.logits)
            reading = part.read(logits, constrained=constrained) + before
            if not is_last:
                return reading
            if states is not None:
                states = states[:: len(states) // len(input_ids), : input_ids.shape[1]]
            return reader(FinalPosition(logits[:, 0], attention_mask, states, outputs, reading))

        with read_inside(unwrapped, read, hidden_states=hidden_states):
            before = rows.run(model, unwrapped=unwrapped, **kwargs)
    return before


def _masks(model: Any, attends: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """The masks of each kind of layer, in the form of the model's attention."""
    config = model.config.get_text_config()
    kinds = _kinds_of_layers(config)
    masks = {}
    for kind in kinds:
        mask = attends
        if kind == _SLIDING:
            mask = attends & (positions.unsqueeze(2) - positions.unsqueeze(1) < config.sliding_window)
        mask = mask.unsqueeze(1)
        if config._attn_implementation == "eager":
            dtype = model.get_input_embeddings().weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        masks[kind] = mask
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _kinds_of_layers(config: Any) -> set[str]:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds)
    return {_FULL if getattr(config, "sliding_window", None) is None else _SLIDING}


@contextmanager
def _window(config: Any, length: int) -> Iterator[None]:
    """A shorter sliding window, for a model that has any."""
    own = getattr(config, "sliding_window", None)
    if own is None:
        yield
        return
    config.sliding_window = min(own, length)
    try:
        yield
    finally:
        config.sliding_window = own
