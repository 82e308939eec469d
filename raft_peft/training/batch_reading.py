"""A batch, read for the loss of its rows in training, or for their numbers in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel

from raft_peft.forward.memory import PartsThatFit
from raft_peft.losses import BradleyTerry, DistributionLoss, Loss, LossSum, cross_entropy
from raft_peft.methods.preference_losses import PreferenceLosses
from raft_peft.methods.readout import HeadOutput, Readout
from raft_peft.methods.row_losses import losses_of
from raft_peft.training.evaluation import RowsRead, rows_read


class BatchReader:
    """Reads batches by a method, through whatever the model is wrapped in for training.

    Args:
        readout: the method at work on the model.
        loss: of the head's output; None for the squared error, and where the loss is over the target's text.
        router_losses: whether the model, a mixture of experts, is to give its auxiliary loss.
        of_pair: the loss of a preference.
    """

    def __init__(
        self,
        readout: Readout,
        loss: Loss | DistributionLoss | LossSum | None,
        *,
        router_losses: bool,
        of_pair: BradleyTerry | None = None,
    ):
        self.readout = readout
        self._loss = loss
        self.preferences = PreferenceLosses(readout, loss, of_pair or BradleyTerry())
        self._options: dict[str, Any] = {"output_router_logits": True} if router_losses else {}
        self._parts = PartsThatFit()
        self._model_and_unwrapped: tuple[Any, Any] = (None, None)

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[HeadOutput, torch.Tensor | None]:
        """What the head made of the batch, and the loss of each row, of shape (batch,), where there are labels.

        Of preferences the loss of each prompt, see [`PreferenceLosses`].
        """
        if torch.is_grad_enabled():
            self.readout.head.is_new = False
        options = {"unwrapped": self._unwrapped(model), **self._options}
        if "target_ids" in batch:
            completion, head = self.readout.read_target(model, batch, **options)
            return head, cross_entropy(completion.log_probs, completion.mask)
        head = self.readout.read_head(model, batch, **options)
        if "labels" not in batch or head.output is None:
            return head, None
        if "pair" in batch:
            of_labels = self.preferences.of_labels(head.output, batch)
            return head, of_labels + self.preferences.of_pairs(self.readout.expectation(head.output), batch)
        ratings = (batch["rating_values"], batch["rating_shares"]) if "rating_values" in batch else None
        return head, losses_of(head.output, batch["labels"], loss=self._loss, readout=self.readout, ratings=ratings)

    def rows(self, model: Any, batch: Mapping[str, torch.Tensor]) -> RowsRead[torch.Tensor]:
        """The numbers of the batch's rows, and what goes with them, without gradients."""
        self.readout.warn_where_untrained()
        with torch.no_grad():
            # A pair may be torn apart where memory is short, so its loss is taken when all prompts were read.
            head, losses = self._losses_of_labels(model, batch) if "pair" in batch else self.losses(model, batch)
            if head.output is None:
                head = self.readout.read_head(model, batch, unwrapped=self._unwrapped(model))
            reading = self.readout.read(head, self._unwrapped(model), batch)
        return rows_read(reading, self.readout, losses, batch, head.tail_log_probs)

    def _losses_of_labels(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[HeadOutput, torch.Tensor]:
        head = self.readout.read_head(model, batch, unwrapped=self._unwrapped(model), **self._options)
        output: Any = head.output
        return head, self.preferences.of_labels(output, batch)

    def in_parts(
        self,
        read: Callable[[dict[str, torch.Tensor]], RowsRead[torch.Tensor]],
        batch: Mapping[str, torch.Tensor],
    ) -> RowsRead[torch.Tensor]:
        """What `read` gives of the batch, a few rows at a time where the memory is not enough for all."""
        rows, length = batch["input_ids"].shape
        parts: list[Any] = self._parts.run(
            lambda some: read({name: values[some] for name, values in batch.items()}), rows, length
        )
        whole: Any = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return whole

    def _unwrapped(self, model: Any) -> Any:
        """The model under its wrappers. It is looked for once, since that goes through all its modules."""
        if self._model_and_unwrapped[0] is not model:
            self._model_and_unwrapped = (model, extract_model_from_parallel(model, keep_torch_compile=False))
        return self._model_and_unwrapped[1]
