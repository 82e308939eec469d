"""The rows that accelerate repeats, so that all processes have full batches to the end of an epoch."""

from __future__ import annotations

from typing import Any

import torch


def rows_that_count(
    accelerator: Any, batch: dict[str, torch.Tensor], dataset_rows: int | None, tp_size: int = 1
) -> torch.Tensor:
    """Which rows of the batch that was fetched last are not repeated ones, bools of shape (batch,).

    The last batches of an epoch are filled with rows of its beginning. They would weigh twice, and the run would
    depend on the number of processes.

    Args:
        accelerator: which hands out the batches.
        batch: of this process.
        dataset_rows: the rows of an epoch; None where they are not known, or the last of them are dropped.
        tp_size: the processes that share their rows.
    """
    rows = len(batch["input_ids"])
    processes = accelerator.num_processes // tp_size
    counts = torch.ones(rows, dtype=torch.bool)
    if processes == 1 or not accelerator.gradient_state.end_of_dataloader:
        return counts
    # Accelerate knows it too, but not in an epoch that training goes on in the middle of
    remainder = accelerator.gradient_state.remainder if dataset_rows is None else dataset_rows % (rows * processes)
    if remainder <= 0:
        return counts
    first = accelerator.process_index // tp_size * rows
    return torch.arange(first, first + rows) < remainder
