"""The memory that is free, and a batch for which it is not enough, run in halves."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size

from raft_peft.grid.trie import Trie
from raft_peft.messages import warn

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PartsThatFit:
    """Runs batches whole, or in as many rows at a time as the memory allows, which it remembers.

    Only for what a process does by itself: where a model is split over processes, all must run batches of one size.
    """

    def __init__(self) -> None:
        self._most_tokens: int | None = None

    def run(self, read: Callable[[slice], T], rows: int, length: int) -> list[T]:
        """What is read from the parts of a batch, in order.

        Args:
            read: reads some of the batch's rows.
            rows: the rows of the batch.
            length: the tokens of a row, with padding.

        Raises:
            RuntimeError: a single row does not fit.
        """
        most = rows if self._most_tokens is None else max(1, self._most_tokens // max(1, length))
        if rows > most:
            return self._run_in_parts(read, rows, length, most)
        try:
            return [read(slice(0, rows))]
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            reason = str(error)
        # Not within the clause above: what it catches keeps the tensors of the attempt
        if rows == 1:
            raise _does_not_fit(length, reason)
        return self._run_in_parts(read, rows, length, rows // 2, has_failed=True)

    def _run_in_parts(
        self, read: Callable[[slice], T], rows: int, length: int, most: int, *, has_failed: bool = False
    ) -> list[T]:
        size = most

        def halved() -> int:
            nonlocal size
            size //= 2
            return size

        def in_parts(batch_size: int) -> list[T]:
            starts = range(0, rows, batch_size)
            return [read(slice(start, min(start + batch_size, rows))) for start in starts]

        try:
            parts = find_executable_batch_size(in_parts, starting_batch_size=most, reduce_batch_size_fn=halved)()
        except RuntimeError as error:
            if size == 0:
                raise _does_not_fit(length, str(error)) from error
            raise
        if has_failed or size < most:
            if self._most_tokens is None:
                warn(
                    logger,
                    f"The memory was not enough for a batch of {rows} prompts of {length} tokens. Prediction goes on "
                    f"with {size} at a time. A smaller `batch_size` from the start saves these attempts.",
                )
            self._most_tokens = size * length
        return parts


def _does_not_fit(length: int, reason: str) -> RuntimeError:
    return RuntimeError(
        f"The memory is not enough for a single prompt of {length} tokens: {reason}\nSet `max_length`, load the model "
        "in 4 bits (`quantization_config`), or use a device with more memory."
    )


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
    available = free_memory(trie.nodes.device)
    if needed > available:
        raise ValueError(
            f"Training on this grid needs about {needed / _GIB:.1f} GiB for the logits alone, and "
            f"{available / _GIB:.1f} GiB are free: its {trie.token_ids.shape[1]:,} numbers begin in {nodes:,} ways, "
            "and each needs a row of logits for every example. Use a coarser grid, since the expectation can lie "
            "between its values; or smaller batches with gradient accumulation; or give each number its own token "
            "with `add_number_tokens`. Prediction works, in parts."
        )


def _bytes_of_a_node(model: Any, trie: Trie) -> int:
    return len(trie.nodes) * model.config.get_text_config().vocab_size * 4


def free_memory(device: torch.device) -> float:
    """The bytes that this process can still take on a device: an NVIDIA GPU, or the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(psutil.virtual_memory().available, _left_by_container(Path("/sys/fs/cgroup")))


def _left_by_container(folder: Path) -> float:
    """What the limit of a container leaves, in bytes, which psutil does not know of; infinite without a limit.

    Args:
        folder: of the control groups, of version 2 or 1.
    """
    for limit, used, cached in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Pages of files that nobody uses are given back where memory is needed.
            counts = dict(line.split() for line in (folder / cached).read_text().splitlines())
            return left + int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
        # There is no such file, or its limit is "max".
        except (OSError, ValueError):
            continue
    return math.inf
