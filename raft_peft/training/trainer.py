"""`RegressionAwareTrainer`: what it hooks into TRL's `SFTTrainer` so that a model is trained to predict a number.

The hooks are the preparation of datasets, the loss, the step and the metrics of an evaluation, the log, and what is
saved. What a hook does stands in the module that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch.utils.data import DataLoader
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from raft_peft.data.batches import RegressionCollator
from raft_peft.data.dataset import first_rows
from raft_peft.data.prompts import PromptEncoder
from raft_peft.distribution import GridDistribution
from raft_peft.forward.model import attach_reading
from raft_peft.grid import NumberGrid
from raft_peft.heads import Head
from raft_peft.losses import BradleyTerry, DistributionLoss, Loss, LossSum
from raft_peft.methods.grid_check import check_grid
from raft_peft.methods.preference_losses import (
    beta_on,
    refuse_losses_without_labels,
    refuse_settings_without_preferences,
    renormalize_for_preferences,
    resolve_preferences,
)
from raft_peft.methods.readout import HeadOutput, Readout
from raft_peft.methods.renormalization import resolve_renormalize
from raft_peft.metrics import Evaluation
from raft_peft.training.batch_reading import BatchReader
from raft_peft.training.config import (
    RegressionAwareConfig,
    loss_to_train_on,
    refuse_offloading_without_accelerator,
    refuse_sequence_sharding,
    refuse_token_callables,
    refuse_training_on_nothing,
)
from raft_peft.training.datasets import (
    EvalDataset,
    RunDatasets,
    ask_questions,
    check_not_empty,
    have_labels,
    have_reasonings,
    hold_preferences,
)
from raft_peft.training.evaluation import (
    RegressionPredictionOutput,
    RowsRead,
    as_numbers,
    by_pairs,
    evaluation_of,
    log_table,
    metrics_of,
    prediction_rows,
    refuse_metrics_of_pairs,
    warn_where_flat,
)
from raft_peft.training.model_init import (
    as_trl_takes_it,
    checked_model,
    correct_after_trl,
    prepare_head,
    reloadable,
)
from raft_peft.training.quantization import trained_tensors
from raft_peft.training.saving import SavingTrainer
from raft_peft.training.speed.choice import choose_for_speed
from raft_peft.training.trained_weights import refuse_untrainable

# Those arguments that give rows.
_DATASETS = ("train_dataset", "eval_dataset")


class RegressionAwareTrainer(SavingTrainer):
    """Fine-tunes a language model to predict a number (RAFT, Lukasik et al., ICLR 2025).

    By default the prediction is the expectation of a grid of numbers under the model's next-token distribution, the
    loss its squared error (the paper's eq. 10); `args.method` chooses among the methods that the paper compares.
    Everything else is [`~trl.SFTTrainer`]'s. Overridden are: the preparation of datasets, the collator, the loss and
    its mean, the evaluation, `predict`, the log, and what is saved (`raft_config.json` in addition).

    ```python
    trainer = RegressionAwareTrainer(
        "google/gemma-2-2b", grid=[1, 2, 3, 4, 5], train_dataset=dataset, peft_config=LoraConfig()
    )
    trainer.train()
    ```

    Args:
        model: model name, folder, model or PEFT model, as in `SFTTrainer`; also a saved adapter, to train it on.
        args: the settings. `SFTConfig` and `TrainingArguments` are converted. By default
            `RegressionAwareConfig("<model>-RAFT")`.
        grid: the numbers that the model may answer with: a list of numbers, a mapping `{number: text}`, or a
            `NumberGrid`. Each may be one token or several.
        train_dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a float `label`; or of `chosen` and
            `rejected` in place of the label, which are trained on with [`BradleyTerry`]. Only `train()` needs it;
            without it the trainer evaluates and predicts zero-shot.
        eval_dataset: the same, or a dict of such datasets.
        head: a head of yours instead of the method's own, see [`Head`].
        loss: a loss of yours instead of the method's own: a callable from predictions and targets of shape (batch,) to
            losses of shape (batch,), such as `torch.nn.HuberLoss(reduction="none")`, a [`DistributionLoss`], or a
            [`LossSum`] of these.
        compute_metrics: gets an `EvalPrediction` of `predictions` and `label_ids`, both numbers of shape (rows,); its
            metrics are added to rmse, mae, pearson, spearman, r2, rmse_of_mean, grid_mass and loss.
        data_collator: by default [`RegressionCollator`]; another must give the same keys.
        processing_class: tokenizer or processor, by default the model's.
        quantization_config: for a model given by name; with `peft_config` for QLoRA.
        peft_config: the adapter, such as `peft.LoraConfig`.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `SFTTrainer`.
        compute_loss_func, preprocess_logits_for_metrics, formatting_func: refused, as they work on token logits.

    Raises:
        ValueError: settings, rows, labels, a grid or a model that cannot be used; the message says what to do.
    """

    # Whether a row has several prompts that begin alike, as typed questions and reasonings have.
    shares_prompts = False

    def __new__(cls, *args: Any, **kwargs: Any) -> RegressionAwareTrainer:
        # Rows of other kinds are trained on by subclasses, as `Path` makes a path of this system.
        datasets = [kwargs.get(name) for name in _DATASETS]
        settings = kwargs.get("args", args[1] if len(args) > 1 else None)
        if cls is RegressionAwareTrainer and any(map(ask_questions, datasets)):
            from raft_peft.training.questions.trainer import QuestionTrainer

            cls = QuestionTrainer
        elif cls is RegressionAwareTrainer and any(have_reasonings(one, settings) for one in datasets):
            from raft_peft.training.reasoning.trainer import ReasoningTrainer

            cls = ReasoningTrainer
        return super().__new__(cls)

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RegressionAwareConfig | TrainingArguments | None = None,
        *,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid | None = None,
        head: Head | None = None,
        loss: Loss | DistributionLoss | LossSum | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: EvalDataset | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable | None = None,
    ):
        refuse_token_callables(compute_loss_func, preprocess_logits_for_metrics, formatting_func)
        args = RegressionAwareConfig.of(args, model)
        refuse_offloading_without_accelerator(args)
        prefers = hold_preferences(train_dataset, args.label_column)
        if prefers:
            renormalize_for_preferences(args, head)
            if not have_labels(train_dataset, args.label_column):
                refuse_losses_without_labels(args, loss)
        elif train_dataset is not None:
            refuse_settings_without_preferences(args)
        refuse_metrics_of_pairs(compute_metrics, has_pairs=hold_preferences(eval_dataset, args.label_column))
        loss = self._settle_method(args, grid, head, loss)
        if prefers:
            resolve_preferences(args, self.grid)
        check_not_empty(train_dataset, eval_dataset)
        name = model if isinstance(model, str) else None
        model, processing_class = checked_model(
            model,
            processing_class,
            self.grid,
            args,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )

        # `super().__init__` adds the adapter, and encodes the datasets through `_prepare_dataset`.
        # So what this method reads is set before, and what needs the model or an encoded row is made after.
        # TRL demands a training dataset, and zero-shot prediction has none.
        self._datasets = self._make_datasets(args, loss)
        self._datasets.check_fits(model)
        trained_before = trained_tensors(model)
        with as_trl_takes_it(model, args, named=name is not None):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=self._datasets.stand_in if train_dataset is None else train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=self._compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                quantization_config=None if name else quantization_config,
                peft_config=reloadable(peft_config, model, args, named=name is not None),
            )
        refuse_sequence_sharding(self.accelerator.parallelism_config)
        correct_after_trl(self.model, args, trained_before, fsdp=self.is_fsdp_enabled)
        if train_dataset is None:
            self.train_dataset = None
        if data_collator is None:
            self.data_collator = self._make_collator(self._tokenizer.pad_token_id, args.pad_to_multiple_of)
        self._attach_readout(head, loss)
        prepare_head(self.readout, self.model, args, self.accelerator, folder=name, optimizer=optimizers[0])
        choose_for_speed(self)
        self._user_compute_metrics = compute_metrics
        # The last evaluation of each name, such as "eval" or "test".
        self.evaluations: dict[str, Evaluation] = {}
        self._table: tuple[str, list[dict[str, Any]]] | None = None

    # What is trained on rows of prompt and label. Rows of questions have other parts, see `QuestionTrainer`.

    def _settle_method(self, args: RegressionAwareConfig, grid: Any, head: Head | None, loss: Any) -> Any:
        """Set the grid, and what the settings leave open; returns the loss."""
        if grid is None:
            raise ValueError(
                "There is no grid: pass the numbers that the model may answer with, such as `grid=[1, 2, 3, 4, 5]`. "
                "Only rows with typed `questions` need none."
            )
        self.grid = NumberGrid(grid)
        resolve_renormalize(args, self.grid, head)
        check_grid(args, self.grid, head)
        return loss_to_train_on(args, loss, self.grid)

    def _make_datasets(self, args: RegressionAwareConfig, loss: Any) -> RunDatasets:
        return RunDatasets(self.grid, args, loss)

    def _make_collator(self, pad_token_id: int, multiple: int | None) -> RegressionCollator:
        # Only training weighs rows.
        weight = 1.0 if self.args.preference_weight is None else self.args.preference_weight
        return RegressionCollator(pad_token_id=pad_token_id, pad_to_multiple_of=multiple, preference_weight=weight)

    def _attach_readout(self, head: Head | None, loss: Loss | DistributionLoss | LossSum | None) -> None:
        """Set the method to work on the model: from here on, the trainer can read batches."""
        attach_reading(self.model)
        self.readout = Readout(
            self.model,
            self._tokenizer,
            self.grid,
            self.args,
            grid_token_ids=self._datasets.grid_token_ids,
            head=head,
            padding_free=bool(self.args.padding_free),
        )
        self.readout.attach(self.model)
        self._custom_head = head
        self._loss = loss
        beta = self.args.preference_beta
        self._reader = BatchReader(
            self.readout,
            loss,
            router_losses=self.aux_loss_enabled,
            of_pair=BradleyTerry(beta_on(self.grid) if beta is None else beta),
        )

    # Datasets

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: RegressionAwareConfig,
        packing: bool,
        formatting_func: Callable | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        self._datasets.open(self._tokenizer, processing_class)
        return self._datasets.encode(dataset, dataset_name)

    @property
    def encoder(self) -> PromptEncoder:
        """What encodes the prompts; the same in prediction."""
        return self._datasets.encoder

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(self._datasets.columns)

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; see [`FaultTolerantTrainer`] for resuming.

        Raises:
            ValueError: there is nothing to train on, nothing to train, or no loss.
        """
        refuse_training_on_nothing(self.train_dataset, self._loss, self.args.method)
        refuse_untrainable(self.model, self.args.output_dir)
        self.readout.attach(self.model)
        self._best_is_loaded = False
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of the batch, over the number of examples of the whole optimizer step."""
        head, losses = self._reader.losses(model, inputs)
        if losses is None:
            raise ValueError("The rows have no label to train on. Give them a float `label`.")
        if self.model.training:
            distribution = head.output
            # Where a head's probabilities sum to 1 over the grid by themselves, its mass says nothing of the model.
            if not isinstance(distribution, GridDistribution) or self.readout.head.sums_to_one:
                distribution = None
            with torch.no_grad():
                predictions = None if head.output is None else self.readout.expectation(head.output)
            self._note_batch(inputs, losses.detach(), distribution, predictions)
        loss = self._mean_over_examples(losses, inputs, num_items_in_batch)
        loss = loss + self._added_loss(head, inputs, num_items_in_batch)
        return (loss, head.output) if return_outputs else loss

    def _added_loss(
        self, head: HeadOutput, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor | float:
        """What the loss of a batch holds beside the mean over its examples."""
        if not self.aux_loss_enabled:
            return 0.0
        batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return self.router_aux_loss_coef * head.auxiliary_loss / batches

    # Evaluation

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, RowsRead[torch.Tensor], torch.Tensor | None]:
        """What is read of a batch's rows, and their labels.

        No loss is given, since `Trainer` would weigh a smaller last batch like a full one. It is a metric instead.
        """
        inputs = self._prepare_inputs(inputs)

        def read(batch: dict[str, torch.Tensor]) -> RowsRead[torch.Tensor]:
            with self.compute_loss_context_manager():
                return self._reader.rows(model, batch)

        rows = read(inputs) if self.runs_in_step_with_others else self._reader.in_parts(read, inputs)
        labels = inputs.get("labels")
        if "pair" in inputs:
            rows, labels = by_pairs(rows, inputs, self._reader.preferences), inputs["labels"][inputs["pair"] >= 0]
        return None, rows, labels

    def _compute_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        refuse_metrics_of_pairs(self._user_compute_metrics, has_pairs="rejected" in evaluated.predictions)
        metrics = metrics_of(evaluated, self.readout)
        if self._user_compute_metrics is not None:
            with_losses = "loss" in self.args.include_for_metrics
            metrics |= self._user_compute_metrics(as_numbers(evaluated, with_losses=with_losses))
        return metrics

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, and remember what was found in `evaluations`."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.label_ids is not None:
            self._remember(output, dataloader, metric_key_prefix)
        return output

    def _remember(self, output: EvalLoopOutput, dataloader: DataLoader, metric_key_prefix: str) -> None:
        evaluation = evaluation_of(output, f"{metric_key_prefix}_", self._step_of_weights, self.readout)
        # The key is taken out first, so that the last one of the dict is the latest.
        self.evaluations.pop(metric_key_prefix, None)
        self.evaluations[metric_key_prefix] = evaluation
        warn_where_flat(evaluation, metric_key_prefix, step=self.state.global_step, args=self.args)
        if self.args.log_predictions and self.args.report_to and self.is_world_process_zero():
            shown = first_rows(dataloader.dataset, self.args.log_predictions)
            columns = self._columns_shown(shown)
            rows = prediction_rows(columns, output.label_ids, output.predictions, self.readout.values.tolist())
            self._table = (f"{metric_key_prefix}_predictions", rows)

    def _columns_shown(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What a table shows of encoded rows, beside what was predicted of them."""
        ids = [row["input_ids"] for row in rows]
        return [{"prompt": text} for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `SFTTrainer.evaluate`, and send a table of predictions to those who log."""
        metrics = super().evaluate(*args, **kwargs)
        # Those who log open their run when they log the metrics, so the table comes after these.
        if self._table is not None:
            log_table(*self._table, self.state.global_step, self.callback_handler.callbacks)
            self._table = None
        return metrics

    def predict(
        self,
        test_dataset: Dataset | IterableDataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> Any:
        """Predict a number for each row of a dataset, in its order.

        Args:
            test_dataset: rows of `prompt` or `input_ids`, with or without labels.
            ignore_keys: not needed, kept for `Trainer`'s signature.
            metric_key_prefix: stands before the names of the metrics.

        Returns:
            A [`RegressionPredictionOutput`]; of rows with typed questions a `PredictionOutput` whose `predictions` are
            an [`AnswersRead`].
        """
        encoded = self._datasets.encode(test_dataset, metric_key_prefix, require_label=False)
        output = super().predict(encoded, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        return self._predicted(output)

    def _predicted(self, output: PredictionOutput) -> Any:
        """What `predict` returns of an output of `Trainer.predict`."""
        return RegressionPredictionOutput.of(output, self.readout.values)
