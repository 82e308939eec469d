"""An evaluation of rows with reasonings: what was read behind each of them, as one prediction a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from raft_peft.distribution import GridDistribution
from raft_peft.methods.readout import Readout
from raft_peft.methods.reasonings import mean_distribution

# A row's target, which is that of each of its reasonings.
_OF_ROWS = ("label_shares", "rated", "beyond", "labels")
_SUMS = ("reasoning_nll", "reasoning_tokens")


def rows_of_reasonings(
    read: Mapping[str, torch.Tensor], row: torch.Tensor, readout: Readout
) -> dict[str, torch.Tensor]:
    """What was read behind each reasoning, as what is known of each row.

    The distribution of a row is the mean of those behind its reasonings, and its prediction is decided by that. A
    number that a head gives, or that was parsed, is the mean of theirs.

    Args:
        read: tensors whose first dimension is reasonings, see [`RowsRead`].
        row: the row of each reasoning, in order, of shape (reasonings,).
        readout: the method at work.
    """
    counts = torch.bincount(row).tolist()
    found = {}
    for name, values in read.items():
        parts = values.split(counts)
        if name in _OF_ROWS:
            found[name] = torch.stack([part[0] for part in parts])
        elif name in _SUMS:
            found[name] = torch.stack([part.sum(0) for part in parts])
        elif name == "log_probs":
            found[name] = mean_distribution(parts)
        else:
            found[name] = torch.stack([part.mean(0) for part in parts])
    if "log_probs" in found and "parsed" not in found:
        values = readout.values.to(found["log_probs"].device)
        found["predictions"] = readout.decide(GridDistribution(found["log_probs"], values))
    return found


def reasoning_metrics(read: Any) -> dict[str, float]:
    """`reasoning_loss`, the mean cross-entropy of a token of the reasonings, in nats, where there are any."""
    tokens = float(np.sum(read["reasoning_tokens"]))
    return {"reasoning_loss": float(np.sum(read["reasoning_nll"])) / tokens} if tokens else {}
