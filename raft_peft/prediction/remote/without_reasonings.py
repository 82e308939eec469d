"""Predictors whose server writes no reasonings before its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from raft_peft.methods.readout import Reading
from raft_peft.prediction.reasoning.reasoned import ReasonedReading


class WithoutReasonings:
    """What a predictor of numbers behind a server answers where reasonings are asked for."""

    read: Any
    reads_reasonings = False

    def writer(self, num_reasonings: int = 0, *, batch_size: int = 64, **options: Any) -> None:
        """Nothing writes reasonings.

        Raises:
            ValueError: some are asked for.
        """
        if num_reasonings or options:
            name = "num_reasonings" if num_reasonings else next(iter(options))
            raise ValueError(
                f"`{name}` lets a model write reasonings before its numbers, and a model behind a server does not. "
                "Open it here, with `RegressionPredictor`, or send rows that have their `reasoning`."
            )

    def read_reasonings(
        self, prompts: Iterable[Any], batch_size: int = 64, *, writer: None = None, **options: Any
    ) -> Iterator[ReasonedReading]:
        """What `read` gives."""
        readings: Iterator[Reading] = self.read(prompts, batch_size, **options)
        return map(ReasonedReading.without, readings)
