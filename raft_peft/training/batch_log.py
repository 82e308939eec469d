"""What all processes saw in the batches of training, for the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from raft_peft.distribution import GridDistribution


def batch_totals(
    batch: Mapping[str, torch.Tensor],
    losses: torch.Tensor,
    distribution: GridDistribution | None,
    predictions: torch.Tensor | None = None,
    *,
    middle: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Sums over the rows of a batch that count, by name, each a float32 scalar.

    Args:
        batch: `attention_mask` of shape (batch, length); beside predictions, `labels` of shape (batch,); and where
            some rows do not count, `counts` of shape (batch,).
        losses: of shape (batch,).
        distribution: of the same rows, if any.
        predictions: of the same rows, of shape (batch,), if any.
        middle: is subtracted from predictions and labels, so that float32 is enough for the sums of their squares.

    Returns:
        `tokens` of the prompts; `with_grid`, how many rows have a distribution; the sums of its `grid_mass` and of its
        `entropy`, in nats; how many losses are `not_finite`; and what [`RowSums`] takes: how many `rows` have a
        prediction, and the sums of `prediction`, `label`, their squares and the `squared_error`.
    """
    tokens = batch["attention_mask"].sum(1)
    one, none = torch.ones_like(losses), torch.zeros_like(losses)
    with torch.no_grad():
        prediction = none if predictions is None else predictions - middle
        label = none if predictions is None else batch["labels"].to(losses.device) - middle
        # A preference has no label to compare its predictions with.
        labelled = ~label.isnan()
        prediction, label = (torch.where(labelled, numbers, 0) for numbers in (prediction, label))
        of_rows = {
            "tokens": tokens.to(losses.device),
            "with_grid": none if distribution is None else one,
            "grid_mass": none if distribution is None else distribution.mass,
            "entropy": none if distribution is None else distribution.entropy,
            "not_finite": ~torch.isfinite(losses),
            "rows": none if predictions is None else labelled,
            "prediction": prediction,
            "prediction_squared": prediction.square(),
            "label": label,
            "label_squared": label.square(),
            "squared_error": (prediction - label).square(),
        }
        stacked = torch.stack([values.to(losses.device, torch.float32) for values in of_rows.values()])
        if "counts" in batch:
            stacked = torch.where(batch["counts"].to(losses.device), stacked, 0)
        return dict(zip(of_rows, stacked.sum(1), strict=True))


def over_processes(totals: Mapping[str, torch.Tensor], accelerator: Any) -> dict[str, float]:
    """The same totals over all processes, gathered at once."""
    stacked = torch.stack(list(totals.values()))
    return dict(zip(totals, accelerator.gather(stacked[None]).sum(0).tolist(), strict=True))


class BatchLog:
    """What the log says of the batches since its last entry, beside the loss.

    These are `num_tokens`, those of all prompts since the trainer was made, and the averages over the batches of
    `grid_mass`, the mean probability of the grid in a batch, and `entropy`, in nats.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, totals: Mapping[str, float], *, tp_size: int) -> None:
        """Take in a batch.

        Args:
            totals: of the batch over all processes, see [`batch_totals`].
            tp_size: the processes that share their rows, each of which has counted them.
        """
        self._tokens += int(totals["tokens"]) // tp_size
        self._values["num_tokens"] = [self._tokens]
        if totals["with_grid"]:
            for name in ("grid_mass", "entropy"):
                self._values[name].append(totals[name] / totals["with_grid"])

    def take(self) -> dict[str, float]:
        """The values of an entry of the log, which begins the next."""
        averages = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return averages
