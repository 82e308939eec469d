"""`ReasoningTrainer`: what `RegressionAwareTrainer` is for rows with reasonings before their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainerCallback

from raft_peft.data.reasoning.collator import ReasoningCollator
from raft_peft.methods.readout import HeadOutput
from raft_peft.training.config import RegressionAwareConfig, temporarily
from raft_peft.training.reasoning.datasets import ReasoningDatasets
from raft_peft.training.reasoning.evaluation import reasoning_metrics, rows_of_reasonings
from raft_peft.training.reasoning.sample import first_reasoning, write_and_read
from raft_peft.training.trainer import RegressionAwareTrainer


class ReasoningTrainer(RegressionAwareTrainer):
    """A `RegressionAwareTrainer` for rows of `prompt`, `reasoning` and a label.

    It is made by `RegressionAwareTrainer(...)` where the rows have a column `reasoning`. The loss is that of the
    method behind each reasoning, and `reasoning_weight` times the cross-entropy of the tokens of the reasonings and of
    the words that lead to the score, each a mean over the whole optimizer step (TRACT, Chiang et al., ACL 2025).
    """

    shares_prompts = True
    _datasets: ReasoningDatasets

    def __init__(self, *args: Any, **kwargs: Any):
        self._tokens_of_step: torch.Tensor | None = None
        # Of this process since the last entry of the log: the negative log-likelihood in nats, and the tokens.
        self._reasoning_log: list[Any] = [0.0, 0.0]
        super().__init__(*args, **kwargs)
        if isinstance(self.data_collator, ReasoningCollator):
            self.add_callback(_EpochCallback(self.data_collator))

    def _make_datasets(self, args: RegressionAwareConfig, loss: Any) -> ReasoningDatasets:
        return ReasoningDatasets(self.grid, args, loss)

    def _make_collator(self, pad_token_id: int, multiple: int | None) -> ReasoningCollator:
        return ReasoningCollator(pad_token_id=pad_token_id, pad_to_multiple_of=multiple, seed=self.args.seed)

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`; with `reasonings="one"`, of one reasoning of each row in an epoch."""
        if not isinstance(self.data_collator, ReasoningCollator) or self.args.reasonings == "all":
            return super().get_train_dataloader()
        # An evaluation takes all reasonings of a row.
        with temporarily(self, data_collator=self.data_collator.taking_one()):
            return super().get_train_dataloader()

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        count = super()._get_num_items_in_batch(batch_samples, device)
        tokens = torch.stack([_counted(batch).sum() for batch in batch_samples]).sum() if batch_samples else None
        if tokens is not None:
            tokens = self.accelerator.gather(tokens.to(device)).sum() / self.get_tp_size()
        self._tokens_of_step = tokens
        return count

    def _added_loss(
        self, head: HeadOutput, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor | float:
        """This batch's part of the mean cross-entropy of the step's reasonings, times its weight, and the rest."""
        added = super()._added_loss(head, inputs, num_items_in_batch)
        assert head.tail_log_probs is not None
        counted = _counted(inputs).to(head.tail_log_probs.device)
        nll = -(head.tail_log_probs * counted).sum()
        tokens = counted.sum()
        if self.model.training:
            self._reasoning_log = [self._reasoning_log[0] + nll.detach(), self._reasoning_log[1] + tokens]
        if num_items_in_batch is not None and self._tokens_of_step is not None:
            # DDP averages the gradients of the processes, while the number is that of the tokens of all of them.
            tokens = self._tokens_of_step / (self.accelerator.num_processes // self.get_tp_size())
        return added + self.args.reasoning_weight * nll / tokens.clamp(min=1)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, torch.Tensor | None]:
        """What is read of a batch's rows, each the mean over its reasonings, and their labels."""
        _, flat, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        read: Any = dict(flat)
        if labels is not None:
            read["labels"] = labels.to(read["predictions"].device)
        found = rows_of_reasonings(read, inputs["row"], self.readout)
        return None, found, found.pop("labels", None)

    def _columns_shown(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The first reasoning of each row, and where the model can write alone, what it writes and predicts itself."""
        shown: list[dict[str, Any]] = [first_reasoning(row, self._tokenizer) for row in rows]
        if not self.runs_in_step_with_others:
            with self.compute_loss_context_manager():
                written = write_and_read(self.model, self._datasets.encoder, self._reader, self.data_collator, rows)
            shown = [{**one, **more} for one, more in zip(shown, written, strict=True)]
        return shown

    def _compute_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        return super()._compute_metrics(evaluated) | reasoning_metrics(evaluated.predictions)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `SFTTrainer.log`; an entry of training holds `reasoning_loss`, in nats a token, too."""
        if self.model.training:
            sums = torch.tensor([self._reasoning_log], dtype=torch.float32, device=self.args.device)
            nll, tokens = self.accelerator.gather(sums).sum(0).tolist()
            self._reasoning_log = [0.0, 0.0]
            if tokens:
                logs["reasoning_loss"] = nll / tokens
        super().log(logs, start_time)


class _EpochCallback(TrainerCallback):
    """Tells a collator the epoch: how often the rows were gone over, also those of a stream of unknown length."""

    def __init__(self, collator: ReasoningCollator):
        self._collator = collator
        self._next = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run begins in the epoch that it was in. What is left of rounding a whole number must not make it
        # the one before.
        self._next = int((state.epoch or 0) + 1e-6)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._collator.epoch.fill_(self._next)
        self._next += 1


def _counted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which tokens of the reasonings count: not those of rows with which an epoch's last batches are filled."""
    mask = batch["reasoning_mask"]
    return mask & batch["counts"].to(mask.device).unsqueeze(1) if "counts" in batch else mask
