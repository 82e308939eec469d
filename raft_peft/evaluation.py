"""Predictions beside their labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """What a model says of rows whose labels are known.

    Attributes:
        predictions: one number a row, in the unit of the labels, of shape (rows,).
        labels: of the same shape.
        metrics: rmse, mae, pearson, spearman, and where there is a distribution over the whole vocabulary, grid_mass
            and entropy (in nats), each a mean over the rows.
        step: after how many steps of training the weights were as they were then; 0 before any, or where that is not
            known.
    """

    predictions: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    step: int = 0

    @property
    def is_flat(self) -> bool:
        """Whether the predictions are all alike, while the labels are not: within a hundredth of the labels' range."""
        return bool(len(self.labels) > 1 and np.ptp(self.predictions) < 0.01 * np.ptp(self.labels))

    def save(self, path: str | Path) -> None:
        """Write the metrics as JSON, null for those that are undefined."""
        metrics = {name: value if np.isfinite(value) else None for name, value in self.metrics.items()}
        Path(path).write_text(json.dumps({"rows": len(self.labels), **metrics}, indent=2) + "\n", encoding="utf-8")
