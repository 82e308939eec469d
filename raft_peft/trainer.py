"""`RegressionAwareTrainer`: TRL's `SFTTrainer` with a number for a target. Wiring only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, TaskType
from torch.utils.data import DataLoader, SequentialSampler
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
from transformers.trainer_utils import PredictionOutput
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from raft_peft import decisions
from raft_peft.adapter import RaftConfig
from raft_peft.collate import RegressionCollator
from raft_peft.config import RegressionAwareConfig
from raft_peft.distribution import GridDistribution
from raft_peft.final_position import check_final_logits, final_position_outputs
from raft_peft.grid import NumberGrid
from raft_peft.losses import squared_error
from raft_peft.metrics import regression_metrics
from raft_peft.preparation import ENCODED_COLUMNS, encode_dataset, first_row
from raft_peft.prompts import PromptEncoder

EvalDataset: TypeAlias = Dataset | IterableDataset | dict[str, Dataset | IterableDataset]


class RegressionPredictionOutput(PredictionOutput):
    """What `predict` returns: a `PredictionOutput` of three fields, with the distribution as an attribute.

    Attributes:
        predictions: one number a row, of shape (rows,), in the order of the dataset and the unit of the labels.
        label_ids: the labels, of shape (rows,), or None where the dataset has none.
        metrics: the metrics, where the dataset has labels.
        distribution: the probabilities of the grid behind each number, over the whole vocabulary.
    """

    distribution: GridDistribution


class RegressionAwareTrainer(SFTTrainer):
    """Fine-tunes a language model to predict a number (RAFT, Lukasik et al., ICLR 2025).

    The prediction is the expectation of a grid of numbers under the model's next-token distribution, the loss its
    squared error (the paper's eq. 10). Everything else is [`~trl.SFTTrainer`]'s. Overridden are: the preparation of
    datasets, the collator, the loss and its normalisation, the evaluation step, `predict`, the order of evaluation,
    and what is saved (`raft_config.json` in addition).

    ```python
    trainer = RegressionAwareTrainer(
        "google/gemma-2-2b", grid=[1, 2, 3, 4, 5], train_dataset=dataset, peft_config=LoraConfig()
    )
    trainer.train()
    ```

    Args:
        model: model name, folder, model or PEFT model, as in `SFTTrainer`. A decoder with a head over the vocabulary.
        args: the settings. `SFTConfig` and `TrainingArguments` are converted. By default
            `RegressionAwareConfig("<model>-RAFT")`.
        grid: the numbers that the model may answer with, each one token: a list of numbers, a mapping
            `{number: text}`, or a `NumberGrid`.
        train_dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a float `label`. Only `train()`
            needs it; without it the trainer evaluates and predicts zero-shot.
        eval_dataset: the same, or a dict of such datasets.
        compute_metrics: gets an `EvalPrediction` of `predictions` and `label_ids`, both numbers of shape (rows,); its
            metrics are added to rmse, mae, pearson, spearman, grid_mass and loss.
        data_collator: by default [`RegressionCollator`]; another must give the same keys.
        processing_class: tokenizer or processor, by default the model's.
        quantization_config: for a model given by name; with `peft_config` for QLoRA.
        peft_config: the adapter, such as `peft.LoraConfig`.
        callbacks, optimizers, optimizer_cls_and_kwargs: as in `SFTTrainer`.
        compute_loss_func, preprocess_logits_for_metrics, formatting_func: refused, as they work on token logits.

    Raises:
        ValueError: settings, rows, labels, a grid or a model that cannot be used; the message says what to do.
    """

    _tag_names = ["trl", "raft", "regression"]  # noqa: RUF012 - read by TRL
    _name = "RAFT"
    _paper = {  # noqa: RUF012 - read by TRL
        "title": "Better autoregressive regression with LLMs via regression-aware fine-tuning",
        "citation": """@inproceedings{lukasik2025better,
    title        = {Better autoregressive regression with {LLM}s via regression-aware fine-tuning},
    author       = {Lukasik, Michal and Meng, Zhao and Narasimhan, Harikrishna and Chang, Yin-Wen and Menon, Aditya Krishna and Yu, Felix and Kumar, Sanjiv},
    year         = 2025,
    booktitle    = {The Thirteenth International Conference on Learning Representations},
}""",  # noqa: E501
    }
    # The loss is divided by the examples of the whole optimizer step, see compute_loss.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RegressionAwareConfig | TrainingArguments | None = None,
        *,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid,
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
        _refuse_token_callables(compute_loss_func, preprocess_logits_for_metrics, formatting_func)
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RegressionAwareConfig(f"{name.rstrip('/').split('/')[-1]}-RAFT")
        elif not isinstance(args, RegressionAwareConfig):
            args = RegressionAwareConfig.from_training_arguments(args)
        if not isinstance(model, str):
            check_final_logits(model)
        for name, dataset in _named_datasets(train_dataset, eval_dataset):
            first_row(dataset, name)

        self.args = args
        self.grid = NumberGrid(grid)
        self._grid_token_ids: list[int] | None = None
        self._user_compute_metrics = compute_metrics
        # SFTTrainer wants a training dataset; zero-shot prediction has none.
        stand_in = Dataset.from_dict({"input_ids": [[0]], "grid_token_ids": [[0] * len(self.grid)], "label": [0.0]})
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=stand_in if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
            peft_config=_for_causal_lm(peft_config),
        )
        if train_dataset is None:
            self.train_dataset = None
        if data_collator is None:
            self.data_collator = RegressionCollator(
                pad_token_id=self._tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
            )
        check_final_logits(self.model)
        _refuse_sequence_sharding(self.accelerator.parallelism_config)

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
        if not hasattr(
            self, "encoder"
        ):  # first called before the constructor of Trainer, as soon as there is a tokenizer
            self.encoder = PromptEncoder(
                self._tokenizer,
                self.grid,
                separator=args.separator,
                max_length=args.max_length,
                processor=processing_class,
            )
        return self._encode_dataset(dataset, dataset_name)

    def _encode_dataset(
        self, dataset: Dataset | IterableDataset, name: str, *, require_label: bool = True
    ) -> Dataset | IterableDataset:
        with self.args.main_process_first(desc=f"tokenizing the {name} dataset"):
            encoded = encode_dataset(
                dataset,
                name,
                self.encoder,
                label_column=self.args.label_column,
                require_label=require_label,
                renormalize=self.args.renormalize,
                num_proc=self.args.dataset_num_proc,
            )
        if self._grid_token_ids is None and encoded is not dataset:
            self._grid_token_ids = list(next(iter(encoded))["grid_token_ids"])
        return encoded

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ENCODED_COLUMNS

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.train_dataset is None:
            raise ValueError(
                "There is nothing to train on. Pass `train_dataset` to RegressionAwareTrainer: rows of `prompt` and a "
                "float `label`. Without it, `evaluate(dataset)` and `predict(dataset)` work zero-shot."
            )
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The squared error of the batch, over the number of examples of the whole optimizer step."""
        distribution, outputs = self._distribution(model, inputs)
        errors = squared_error(self._decide(distribution), inputs["labels"])
        auxiliary_steps = 1
        if num_items_in_batch is None:
            loss = errors.mean()
        else:
            # DDP averages the gradients of the processes, while the count is that of all of them
            loss = errors.sum() / num_items_in_batch * (self.accelerator.num_processes // self._tp_size)
            auxiliary_steps = self.current_gradient_accumulation_steps
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / auxiliary_steps
        if self.model.training:
            self._log_batch(inputs, distribution)
        return (loss, outputs) if return_outputs else loss

    def _distribution(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[GridDistribution, Any]:
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        logits, outputs = final_position_outputs(
            model,
            inputs["input_ids"],
            inputs["attention_mask"],
            unwrapped=self.accelerator.unwrap_model(model, keep_torch_compile=False),
            **extra,
        )
        return GridDistribution.from_logits(logits, inputs["grid_token_ids"], self.grid.values), outputs

    def _decide(self, distribution: GridDistribution) -> torch.Tensor:
        return decisions.mean(distribution, renormalize=self.args.renormalize)

    def _log_batch(self, inputs: dict[str, torch.Tensor], distribution: GridDistribution) -> None:
        counts = torch.stack([inputs["attention_mask"].sum(), distribution.mass.detach().sum()])
        tokens, mass = self.accelerator.gather(counts[None]).sum(0).tolist()
        rows = len(distribution) * self.accelerator.num_processes
        self._total_train_tokens += int(tokens) // self._tp_size
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["train"]["grid_mass"].append(mass / rows)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        """The number of examples in the optimizer step, over all processes."""
        if not batch_samples:
            return None
        count = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() / self._tp_size

    # Evaluation

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[torch.Tensor, torch.Tensor], torch.Tensor | None]:
        """Predictions of shape (batch,) and log-probabilities of shape (batch, grid).

        No loss is given: `Trainer` would weigh a smaller last batch like a full one. It is a metric instead.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            distribution, _ = self._distribution(model, inputs)
        return None, (self._decide(distribution), distribution.log_probs), inputs.get("labels")

    def _compute_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        predictions, log_probs = evaluated.predictions
        losses = squared_error(torch.from_numpy(predictions), torch.from_numpy(evaluated.label_ids)).numpy()
        metrics = {
            "loss": float(losses.mean()),
            **regression_metrics(predictions, evaluated.label_ids),
            "grid_mass": float(np.exp(log_probs).sum(-1).mean()),
        }
        if self._user_compute_metrics is not None:
            metrics |= self._user_compute_metrics(
                EvalPrediction(
                    predictions=predictions,
                    label_ids=evaluated.label_ids,
                    inputs=evaluated.inputs,
                    losses=losses if "loss" in self.args.include_for_metrics else None,
                )
            )
        return metrics

    def predict(
        self,
        test_dataset: Dataset | IterableDataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> RegressionPredictionOutput:
        """Predict a number for each row of a dataset, in its order.

        Args:
            test_dataset: rows of `prompt` or `input_ids`, with or without labels.
            ignore_keys: not needed, kept for `Trainer`'s signature.
            metric_key_prefix: stands before the names of the metrics.
        """
        encoded = self._encode_dataset(test_dataset, metric_key_prefix, require_label=False)
        output = super().predict(encoded, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        predictions, log_probs = output.predictions
        result = RegressionPredictionOutput(predictions, output.label_ids, output.metrics)
        result.distribution = GridDistribution(torch.from_numpy(log_probs), torch.tensor(self.grid.values))
        return result

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self._every_row():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self._every_row():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _every_row(self) -> Iterator[None]:
        """`dataloader_drop_last` is for training; `Trainer` would drop rows of an evaluation too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """Rows in order, also where training groups them by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._raft_config().save(output_dir if output_dir is not None else self.args.output_dir)

    def _raft_config(self) -> RaftConfig:
        ids = None if self._grid_token_ids is None else [[token_id] for token_id in self._grid_token_ids]
        return RaftConfig(
            values=list(self.grid.values),
            texts=list(self.grid.texts),
            token_ids=ids,
            token_texts=None
            if ids is None
            else [self._tokenizer.decode(one, skip_special_tokens=False) for one in ids],
            separator=self.args.separator,
            max_length=self.args.max_length,
            renormalize=self.args.renormalize,
            base_model=get_config_model_id(self.model.config),
            dtype=str(self.model.dtype).removeprefix("torch."),
        )


def _named_datasets(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Dataset | IterableDataset]]:
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named = {"train": train_dataset, **evaluated}
    return [(name, dataset) for name, dataset in named.items() if isinstance(dataset, Dataset | IterableDataset)]


def _for_causal_lm(peft_config: PeftConfig | None) -> PeftConfig | None:
    """The adapter's configuration with the task type under which `AutoPeftModelForCausalLM` opens it again."""
    if not isinstance(peft_config, PeftConfig) or peft_config.task_type == TaskType.CAUSAL_LM:
        return peft_config
    if peft_config.task_type is not None:
        raise ValueError(
            f"The adapter's task_type is {peft_config.task_type}, but the numbers are read from a language model's "
            "next-token probabilities. Set task_type='CAUSAL_LM'."
        )
    return dataclasses.replace(peft_config, task_type=TaskType.CAUSAL_LM)


def _refuse_token_callables(compute_loss_func: Any, preprocess_logits_for_metrics: Any, formatting_func: Any) -> None:
    reasons = {
        "compute_loss_func": (
            compute_loss_func,
            "It is for token logits and labels, and there are neither. Subclass "
            "RegressionAwareTrainer and override compute_loss.",
        ),
        "preprocess_logits_for_metrics": (
            preprocess_logits_for_metrics,
            "No logits are kept, only numbers. compute_metrics gets predictions and labels as they are.",
        ),
        "formatting_func": (
            formatting_func,
            "It makes texts to complete. Make a `prompt` column: dataset.map(lambda row: {'prompt': ...}).",
        ),
    }
    for name, (value, cure) in reasons.items():
        if value is not None:
            raise ValueError(f"`{name}` cannot be used with a regression loss. {cure}")


def _refuse_sequence_sharding(parallelism: Any) -> None:
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism split each row over processes, and only one of them would hold the "
            "final position that the loss reads. Set cp_size and sp_size to 1; use FSDP or DeepSpeed ZeRO instead."
        )
