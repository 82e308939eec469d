"""Prompts of like length in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches_by_length(lengths: Sequence[int], batch_size: int, batch_tokens: int) -> Iterator[list[int]]:
    """Split prompts into batches of like length, the longest first, so that what needs most memory comes first.

    >>> list(batches_by_length([2, 5, 3, 1], batch_size=3, batch_tokens=6))
    [[1], [2, 0], [3]]

    Args:
        lengths: tokens of each prompt.
        batch_size: the most prompts of a batch.
        batch_tokens: the most tokens of a batch, with padding; a longer prompt is a batch of its own.

    Returns:
        The indices of each batch's prompts.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(by_length):
        longest = max(1, lengths[by_length[start]])
        size = max(1, min(batch_size, batch_tokens // longest))
        yield by_length[start : start + size]
        start += size
