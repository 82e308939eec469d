"""Many prompts through a model: in batches of like length, what they begin with once, in parts that fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from raft_peft.data.batches import RegressionCollator, batches_by_length
from raft_peft.data.prompts import EncodedPrompt
from raft_peft.forward.forest import Groups, apart, common_prefix, group_prompts, token_cost_of
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import device_of
from raft_peft.forward.one_at_a_time import turn_of
from raft_peft.forward.prefix_cache import PrefixCache
from raft_peft.methods.readout import Reading, Readout, joined

T = TypeVar("T")

# On a CPU more tokens at once are not faster, and batches of fewer rows are of more alike lengths, with less padding.
_MOST_TOKENS_ON_CPU = 512
# A shorter beginning in common is not worth a cache.
_SHORTEST_PREFIX = 8


@dataclass(kw_only=True)
class BatchRunner:
    """Runs chunks of encoded prompts through a model, in batches.

    What the prompts of one chunk begin with is kept for the next, so each stream of prompts takes a runner of its own.

    Attributes:
        model: a causal language model.
        readout: the method at work on it.
        collate: makes a batch of encoded prompts.
        parts: runs a batch in parts where the memory is not enough for the whole.
        autocast: the dtype in which products are computed; None for that of the weights.
        batch_size: the most prompts in a forward pass.
        batch_tokens: the most tokens in a forward pass, with padding and without the beginning in common; on a CPU 512
            at most.
    """

    model: Any
    readout: Readout
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]]
    parts: PartsThatFit
    autocast: torch.dtype | None
    batch_size: int
    batch_tokens: int
    _prefix: PrefixCache | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be 1 or more.")

    def run(self, prompts: Sequence[EncodedPrompt], on_batch: Callable[[int], object]) -> Reading:
        """The reading of a chunk of prompts on the CPU, in their order.

        Args:
            prompts: of the chunk.
            on_batch: called after each batch, with the number of its prompts.
        """
        order: list[int] = []
        readings: list[Reading] = []
        with self._inference():
            self._prefix = self._prefix_of(prompts)
            for batch, prefix in self._batches(prompts):
                readings += self._run_batch([prompts[index] for index in batch], prefix)
                order += batch
                on_batch(len(batch))
        return joined(readings, torch.tensor(order).argsort())

    def _batches(self, prompts: Sequence[EncodedPrompt]) -> Iterator[tuple[list[int], PrefixCache | None]]:
        """The indices of each batch's prompts, and what is known of their beginning."""
        known = 0 if self._prefix is None else len(self._prefix.token_ids)
        behind = [np.array(prompt.input_ids[known:]) for prompt in prompts]
        groups = self._groups(behind, known)
        indices = [groups.order[group].tolist() for group in groups]
        sizes = [sum(len(behind[index]) for index in group) for group in indices]
        sizes = [size - int(groups.shared[group].sum()) for size, group in zip(sizes, groups, strict=True)]
        most = min(self.batch_tokens, _MOST_TOKENS_ON_CPU) if self._device.type == "cpu" else self.batch_tokens
        for batch in batches_by_length(sizes, self.batch_size, most, list(map(len, indices))):
            members = [index for group in batch for index in indices[group]]
            if len(members) <= self.batch_size:
                yield members, self._prefix
                continue
            # One group that is more than a batch: its beginning is run once, and known to all of its batches.
            beginning = common_prefix([prompts[index].input_ids for index in members])
            prefix = PrefixCache(self.model, beginning)
            for part in chunks(members, self.batch_size):
                yield part, prefix

    def _groups(self, prompts: Sequence[np.ndarray], prefix: int) -> Groups:
        if len(prompts) == 1 or not self.readout.can_cache_prefixes(self.model):
            return apart(len(prompts))
        # Batches are of like length, so that hardly anything is padded.
        return group_prompts(prompts, prefix=prefix, token_cost=token_cost_of(self.model), padding="nothing")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        device, dtype = self._device, self.autocast
        with (
            turn_of(self.model),
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield

    @property
    def _device(self) -> torch.device:
        return device_of(self.model.get_input_embeddings())

    def _prefix_of(self, prompts: Sequence[EncodedPrompt]) -> PrefixCache | None:
        """The common beginning of all prompts where it is worth a run of its own, or the last chunk's if it holds."""
        token_ids = common_prefix([prompt.input_ids for prompt in prompts])
        before = self._prefix
        if before is not None:
            known = len(before.token_ids)
            if tuple(token_ids[:known]) == before.token_ids and len(token_ids) < 2 * known:
                return before
        if len(prompts) == 1 or len(token_ids) < _SHORTEST_PREFIX:
            return None
        return PrefixCache(self.model, token_ids) if self.readout.can_cache_prefixes(self.model) else None

    def _run_batch(self, prompts: Sequence[EncodedPrompt], prefix: PrefixCache | None) -> list[Reading]:
        """The reading of a batch, in parts where the memory is not enough for the whole."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        return self.parts.run(lambda some: self._run_part(prompts[some], prefix), len(prompts), longest)

    def _run_part(self, prompts: Sequence[EncodedPrompt], prefix: PrefixCache | None) -> Reading:
        batch = self.collate(prompts)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        head = self.readout.read_head(self.model, batch, prefix=prefix, grouped=True)
        return self.readout.read(head, self.model, batch)


def collate_prompts(collator: RegressionCollator, prompts: Sequence[EncodedPrompt]) -> dict[str, torch.Tensor]:
    """A batch of encoded prompts."""
    return collator([{"input_ids": p.input_ids, "grid_token_ids": p.grid_token_ids} for p in prompts])


def autocast_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of a predictor's `autocast`; None where products are computed in that of the weights.

    Raises:
        ValueError: products cannot be computed in it.
    """
    dtype = getattr(torch, name, name) if isinstance(name, str) else name
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast={name!r} is not a dtype to compute in. Use 'bfloat16', 'float16' or 'float32'.")
    return None if dtype == torch.float32 else dtype


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into lists of so many, the last of them shorter, as they are read.

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    if size < 1:
        raise ValueError(f"`chunk_size={size}` must be 1 or more.")
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
