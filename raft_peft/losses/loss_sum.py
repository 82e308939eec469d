"""A weighted sum of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft_peft.losses.base import DistributionLoss, Loss


@dataclass(frozen=True)
class LossSum:
    """Losses of the prediction and of the distribution, each times its weight, for `RegressionAwareTrainer(loss=...)`.

    ```python
    loss = LossSum([(squared_error, 1.0), (CRPS(), 0.5)])
    ```

    Attributes:
        parts: each loss and its weight.
    """

    parts: Sequence[tuple[Loss | DistributionLoss | LossSum, float]]

    @property
    def labels_within_grid(self) -> bool:
        """Whether a part needs labels within the range of the grid."""
        return any(getattr(loss, "labels_within_grid", False) for loss, _ in self.parts)
