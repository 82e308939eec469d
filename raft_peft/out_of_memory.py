"""A batch for which the memory is not enough, run in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size

from raft_peft.main_process import warn

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
                    f"with {size} at a time. A smaller batch from the start saves the attempts.",
                )
            self._most_tokens = size * length
        return parts


def _does_not_fit(length: int, reason: str) -> RuntimeError:
    return RuntimeError(
        f"The memory is not enough for a single prompt of {length} tokens: {reason}\nSet max_length, load the model "
        "in 4 bits (quantization_config), or use a device with more memory."
    )
