"""`ExampleCountingTrainer`: a run is counted in examples, each of them once, where `SFTTrainer` counts tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, List
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from raft_peft.data.batches import rows_that_count
from raft_peft.distribution import GridDistribution
from raft_peft.grid import NumberGrid
from raft_peft.training.batch_log import BatchLog, batch_totals, over_processes
from raft_peft.training.config import temporarily
from raft_peft.training.fault_tolerance.collapse import CollapseCallback
from raft_peft.training.fault_tolerance.trainer import FaultTolerantTrainer


class ExampleCountingTrainer(FaultTolerantTrainer):
    """A trainer whose loss is a mean over the examples of an optimizer step, and whose evaluations are of every row.

    Overridden are the number that a step's loss is divided by, the log, and what goes over the rows of an evaluation.
    A subclass has a `grid`, and calls `_note_batch` and `_mean_over_examples` in `compute_loss`.
    """

    grid: NumberGrid

    # `Trainer` would divide the loss by the batches of the step, and `_mean_over_examples` divides it already.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any):
        self._batch_log = BatchLog()
        super().__init__(*args, **kwargs)
        self._collapse = CollapseCallback(self.grid.values)
        self.add_callback(self._collapse)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        """The number of examples in the optimizer step, over all processes; with weights, their sum."""
        if not batch_samples:
            return None
        self._step_batches = batch_samples
        last = batch_samples[-1]
        counts = rows_that_count(self.accelerator, last, self._rows_of_an_epoch(), self.get_tp_size())
        if not counts.all():
            last["counts"] = counts
        if "weights" in last:
            # No sum is read here, so that the device need not be waited for.
            sums = [batch["weights"].sum() for batch in batch_samples[:-1]]
            count = torch.stack([*sums, last["weights"][counts.to(last["weights"].device)].sum()]).sum().to(device)
        else:
            rows = sum(len(batch["labels"]) for batch in batch_samples[:-1]) + int(counts.sum())
            count = torch.tensor(rows, device=device)
        return self.accelerator.gather(count).sum() / self.get_tp_size()

    def _rows_of_an_epoch(self) -> int | None:
        dropped = self.args.dataloader_drop_last or not self.accelerator.even_batches
        return None if dropped or not isinstance(self.train_dataset, Dataset) else len(self.train_dataset)

    def _mean_over_examples(
        self, losses: torch.Tensor, batch: Mapping[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """This batch's part of the mean over the optimizer step; without a number of its examples, over the batch.

        Args:
            losses: of the rows, of shape (batch,).
            batch: where rows have a weight, `weights` of shape (batch,).
            num_items_in_batch: the examples of the whole step, or the sum of their weights.
        """
        weights = batch.get("weights")
        if weights is not None:
            losses = losses * weights
        if "counts" in batch:
            losses = torch.where(batch["counts"], losses, 0)
        if num_items_in_batch is None:
            return losses.mean() if weights is None else losses.sum() / weights.sum()
        # DDP averages the gradients of the processes, while the number is that of the examples of all of them.
        return losses.sum() / num_items_in_batch * (self.accelerator.num_processes // self.get_tp_size())

    def _note_batch(
        self,
        batch: dict[str, torch.Tensor],
        losses: torch.Tensor,
        distribution: GridDistribution | None,
        predictions: torch.Tensor | None,
    ) -> None:
        """Count what all processes saw, and remember the rows where a loss of any of them is not a number.

        Args:
            batch: of this process.
            losses: of its rows, of shape (batch,).
            distribution: of its rows, whose mass and entropy are logged; None where they say nothing.
            predictions: of its rows, of shape (batch,); None where training makes none.
        """
        totals = over_processes(
            batch_totals(batch, losses, distribution, predictions, middle=self._collapse.middle), self.accelerator
        )
        self._batch_log.add(totals, tp_size=self.get_tp_size())
        self._collapse.add(totals)
        if totals["not_finite"]:
            not_finite = ~torch.isfinite(losses)
            if "counts" in batch:
                not_finite &= batch["counts"].to(not_finite.device)
            self._note_non_finite(batch, not_finite)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `SFTTrainer.log`; an entry of training also says what was seen since the last one, see [`BatchLog`]."""
        if self.model.training:
            logs.update(self._batch_log.take())
        super().log(logs, start_time)

    @property
    def runs_in_step_with_others(self) -> bool:
        """Whether a forward pass is done by several processes together, which must run batches of one size."""
        return self._is_sharded or self.is_distributed_loading_by_transformers or self.get_tp_size() > 1

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`, of all rows: `dataloader_drop_last` is for training here."""
        with temporarily(self.args, dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer.get_test_dataloader`, of all rows."""
        with temporarily(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(test_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """As `Trainer._get_train_sampler`; a row of several prompts is as long as the longest of them."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_length = self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        if by_length and isinstance(dataset, Dataset) and isinstance(dataset.features["input_ids"].feature, List):
            lengths = [max(map(len, prompts)) for prompts in dataset["input_ids"]]
            # It is read for this alone, and no row of a batch has it.
            dataset = dataset.add_column(self.args.length_column_name, lengths)
        return super()._get_train_sampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """Rows in order, also where training groups them by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
