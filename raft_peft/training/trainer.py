"""`RegressionAwareTrainer`: TRL's `SFTTrainer` with a number for a target. Wiring only."""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
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
from transformers.trainer_utils import EvalLoopOutput, SchedulerType
from trl.models import enable_selective_activation_checkpointing
from trl.trainer.utils import get_config_model_id

from raft_peft.data.batches import RegressionCollator, rows_that_count
from raft_peft.data.dataset import ENCODED_COLUMNS, encode_dataset, first_row, first_rows, spread_rows
from raft_peft.data.prompt_template import prompt_shape
from raft_peft.data.prompts import PromptEncoder
from raft_peft.distribution import GridDistribution
from raft_peft.forward.attention import own_implementation
from raft_peft.forward.memory import PartsThatFit
from raft_peft.forward.model import base_model, check_final_logits, check_not_packed
from raft_peft.grid import NumberGrid, number_text
from raft_peft.heads import Head
from raft_peft.losses import DistributionLoss, Loss, cross_entropy, squared_error
from raft_peft.main_process import warn
from raft_peft.methods import METHODS
from raft_peft.methods.readout import HeadReading, Readout
from raft_peft.methods.saved_folder import (
    CALIBRATION_NAME,
    HEAD_FILE,
    HEAD_NAME,
    RAFT_CONFIG_NAME,
    RaftConfig,
    quantization_of,
    save_head,
)
from raft_peft.metrics import Evaluation, grid_metrics, regression_metrics
from raft_peft.training.config import (
    RegressionAwareConfig,
    _temporarily,
    refuse_offloading_without_accelerator,
    refuse_sequence_sharding,
    refuse_token_callables,
)
from raft_peft.training.evaluation import RegressionPredictionOutput, log_table, prediction_rows
from raft_peft.training.fault_tolerance import FaultTolerantTrainer
from raft_peft.training.model_card import CardFacts, is_ours, save_card
from raft_peft.training.model_init import init_kwargs_of, processing_class_of, random_model, reloadable
from raft_peft.training.number_tokens import check_number_tokens, rows_saved_alone
from raft_peft.training.quantization import keep_precision, trained_tensors

logger = logging.getLogger(__name__)

# So many prompts tell what all have in common; fewer may have somebody's words in common.
_PROMPTS_COMPARED, _FEWEST_PROMPTS = 64, 8

EvalDataset: TypeAlias = Dataset | IterableDataset | dict[str, Dataset | IterableDataset]


class RegressionAwareTrainer(FaultTolerantTrainer):
    """Fine-tunes a language model to predict a number (RAFT, Lukasik et al., ICLR 2025).

    By default the prediction is the expectation of a grid of numbers under the model's next-token distribution, the
    loss its squared error (the paper's eq. 10); `args.method` chooses among the methods that the paper compares.
    Everything else is [`~trl.SFTTrainer`]'s. Overridden are: the preparation of datasets, the collator, the loss and
    its normalisation, the evaluation step, `predict`, the order of evaluation, and what is saved (`raft_config.json`
    in addition).

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
        grid: the numbers that the model may answer with: a list of numbers, a mapping `{number: text}`, or a
            `NumberGrid`. Each may be one token or several.
        train_dataset: rows of `prompt` (text or chat messages) or `input_ids`, and a float `label`. Only `train()`
            needs it; without it the trainer evaluates and predicts zero-shot.
        eval_dataset: the same, or a dict of such datasets.
        head: a head of yours instead of the method's own, see [`Head`].
        loss: a loss of yours instead of the method's own: a callable from predictions and targets of shape (batch,) to
            losses of shape (batch,), such as `torch.nn.HuberLoss(reduction="none")`, or a [`DistributionLoss`].
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
    _dataset_name: str | None = None
    _best_is_loaded = False
    _name = "RAFT"
    _paper = {  # noqa: RUF012 - read by TRL
        "title": "Better autoregressive regression with LLMs via regression-aware fine-tuning",
        "citation": """@inproceedings{lukasik2025better,
    title        = {Better autoregressive regression with {LLM}s via regression-aware fine-tuning},
    author       = {Lukasik, Michal and Meng, Zhao and Narasimhan, Harikrishna and Chang, Yin-Wen and
                    Menon, Aditya Krishna and Yu, Felix and Kumar, Sanjiv},
    year         = 2025,
    booktitle    = {The Thirteenth International Conference on Learning Representations},
}""",
    }
    # The loss is divided by the examples of the whole optimizer step, see compute_loss.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RegressionAwareConfig | TrainingArguments | None = None,
        *,
        grid: Iterable[float] | Mapping[float, str] | NumberGrid,
        head: Head | None = None,
        loss: Loss | DistributionLoss | None = None,
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
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RegressionAwareConfig(f"{name.rstrip('/').split('/')[-1]}-RAFT")
        elif not isinstance(args, RegressionAwareConfig):
            args = RegressionAwareConfig.from_training_arguments(args)
        refuse_offloading_without_accelerator(args)
        method = METHODS[args.method]
        if loss is not None and method.trains_text:
            raise ValueError(
                f"`loss` cannot be used with method {args.method!r}, whose loss is over the target's text."
            )
        if args.init == "random":
            processing_class = processing_class or processing_class_of(model, args)
            model = random_model(model, args, quantization_config, peft_config)
        if not isinstance(model, str):
            check_final_logits(model)
            check_not_packed(model)
        for name, dataset in _named_datasets(train_dataset, eval_dataset):
            first_row(dataset, name)

        self.args = args
        self.grid = NumberGrid(grid)
        check_number_tokens(model, self.grid, processing_class)
        self._grid_token_ids: tuple[tuple[int, ...], ...] | None = None
        self._custom_head = head
        self._loss = method.loss(args) if loss is None and method.loss is not None else loss
        self._user_compute_metrics = compute_metrics
        # The last evaluation of each name, such as "eval" or "test"
        self.evaluations: dict[str, Evaluation] = {}
        self._prompt_shape: Any = None
        self._table: tuple[str, list[dict[str, Any]]] | None = None
        # SFTTrainer wants a training dataset; zero-shot prediction has none.
        stand_in = Dataset.from_dict({"input_ids": [[0]], "grid_token_ids": [[[0]] * len(self.grid)], "label": [0.0]})
        self._encoded_here: weakref.WeakSet[Any] = weakref.WeakSet([stand_in])
        if isinstance(model, str):
            args.model_init_kwargs = init_kwargs_of(args, quantization_config)
        folder = model if isinstance(model, str) else None
        before = trained_tensors(model)
        self._parts = PartsThatFit()
        # TRL's own is for token labels, and refuses `max_length`; here the encoder cuts and the readout flattens
        with _temporarily(args, padding_free=False):
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
                peft_config=reloadable(peft_config, model, args),
            )
        if train_dataset is None:
            self.train_dataset = None
        if getattr(self.model, "is_quantized", False):
            keep_precision(self.model, before, fsdp=self.is_fsdp_enabled)
        if (args.gradient_checkpointing_kwargs or {}).get("selective"):
            # TRL wraps the method of the PEFT model, while `Trainer` calls that of the model under it
            enable_selective_activation_checkpointing(base_model(self.model))
        if data_collator is None:
            self.data_collator = RegressionCollator(
                pad_token_id=self._tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
            )
        refuse_sequence_sharding(self.accelerator.parallelism_config)
        self.readout = Readout(
            self.model,
            self._tokenizer,
            self.grid,
            args,
            grid_token_ids=self._grid_token_ids,
            head=head,
            padding_free=args.padding_free,
        )
        self._model_and_unwrapped: tuple[Any, Any] = (None, None)
        if self.readout.has_parameters:
            self._prepare_head(folder, optimizers[0])

    def _prepare_head(self, folder: str | None, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None:
            raise ValueError(
                f"The head of method {self.args.method!r} has parameters that the optimizer you pass does not know. "
                "Pass `optimizer_cls_and_kwargs`, or name one with `optim`."
            )
        if self.readout.head.reads_hidden_states and self.args.ddp_find_unused_parameters is None:
            # The output over the vocabulary has no part in the loss. Not by the argument, which is read before.
            self.accelerator.ddp_handler.find_unused_parameters = True
        if folder is not None and (Path(folder) / HEAD_FILE).is_file():
            saved = RaftConfig.load(Path(folder) / RAFT_CONFIG_NAME)
            if saved.method == self.args.method:  # training goes on with the head that the folder was saved with
                self.readout.load_head(Path(folder) / HEAD_FILE)

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
        if not hasattr(self, "encoder"):  # first called when there is a tokenizer, before Trainer's constructor
            self.encoder = PromptEncoder(
                self._tokenizer,
                self.grid,
                separator=args.separator,
                max_length=args.max_length,
                number_end=args.end_of_numbers(self._tokenizer),
                processor=processing_class,
            )
        return self._encode_dataset(dataset, dataset_name)

    def _encode_dataset(
        self, dataset: Dataset | IterableDataset, name: str, *, require_label: bool = True
    ) -> Dataset | IterableDataset:
        if dataset in self._encoded_here:
            return dataset
        with self.args.main_process_first(desc=f"tokenizing the {name} dataset"):
            encoded = encode_dataset(
                dataset,
                name,
                self.encoder,
                label_column=self.args.label_column,
                require_label=require_label,
                method=METHODS[self.args.method],
                renormalize=self.args.renormalize,
                num_proc=self.args.dataset_num_proc,
            )
        self._encoded_here.add(encoded)
        if self._prompt_shape is None:
            prompts = [row.get("prompt") for row in spread_rows(dataset, _PROMPTS_COMPARED)]
            self._prompt_shape = prompt_shape(prompts) if len(prompts) >= _FEWEST_PROMPTS else None
        if self._grid_token_ids is None:
            self._grid_token_ids = tuple(map(tuple, next(iter(encoded))["grid_token_ids"]))
        return encoded

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ENCODED_COLUMNS

    # Training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; see [`FaultTolerantTrainer`] for resuming.

        Raises:
            ValueError: there is nothing to train on, or no loss.
        """
        if self.train_dataset is None:
            raise ValueError(
                "There is nothing to train on. Pass `train_dataset` to RegressionAwareTrainer: rows of `prompt` and a "
                "float `label`. Without it, `evaluate(dataset)` and `predict(dataset)` work zero-shot."
            )
        if self._loss is None and not self.readout.method.trains_text:
            raise ValueError(
                f"Method {self.args.method!r} predicts zero-shot and has no loss to train on. Set `method` to raft or "
                "another that trains, or pass `loss`."
            )
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
        head, losses = self._forward(model, inputs)
        if losses is None:
            raise ValueError("The rows have no label to train on. Give them a float `label`.")
        if self.model.training:
            self._log_batch(inputs, head.output, losses.detach())
            if "counts" in inputs:
                losses = torch.where(inputs["counts"], losses, 0)
        auxiliary_steps = 1
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            # DDP averages the gradients of the processes, while the count is that of all of them
            loss = losses.sum() / num_items_in_batch * (self.accelerator.num_processes // self._tp_size)
            auxiliary_steps = self.current_gradient_accumulation_steps
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * head.auxiliary_loss / auxiliary_steps
        return (loss, head.output) if return_outputs else loss

    def _forward(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[HeadReading, torch.Tensor | None]:
        """What the head made of the batch, and the loss of each row where there are labels."""
        options: dict[str, Any] = {"unwrapped": self._unwrapped(model)}
        if self.aux_loss_enabled:
            options["output_router_logits"] = True
        if "target_ids" in inputs:
            completion, head = self.readout.read_target(model, inputs, **options)
            return head, cross_entropy(completion.log_probs, completion.mask)
        head = self.readout.read_head(model, inputs, **options)
        if "labels" not in inputs or head.output is None:
            return head, None
        return head, self._losses(head.output, inputs["labels"])

    def _losses(self, output: GridDistribution | torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._loss is None and self.readout.method.trains_text:
            raise ValueError("The rows have no target text to take the cross-entropy of. Pass them with their labels.")
        labels = labels.to(output.log_probs.device if isinstance(output, GridDistribution) else output.device)
        if isinstance(self._loss, DistributionLoss):
            if not isinstance(output, GridDistribution):
                raise ValueError(
                    f"{type(self._loss).__name__} reads a distribution, and {type(self.readout.head).__name__} gives "
                    "one number a row. Use a loss of the prediction, or a head that gives a GridDistribution."
                )
            losses = self._loss(output, labels)
        else:
            losses = (self._loss or squared_error)(self.readout.expectation(output), labels)
        if losses.shape != labels.shape:
            raise ValueError(
                f"The loss gives the shape {tuple(losses.shape)} for a batch of {len(labels)}; it must give one "
                "value an example, not reduced: with torch's losses, reduction='none'."
            )
        return losses

    def _unwrapped(self, model: Any) -> Any:
        """The model under its wrappers, looked for once: that goes through all its modules."""
        if self._model_and_unwrapped[0] is not model:
            self._model_and_unwrapped = (model, self.accelerator.unwrap_model(model, keep_torch_compile=False))
        return self._model_and_unwrapped[1]

    def _log_batch(
        self, inputs: dict[str, torch.Tensor], output: GridDistribution | torch.Tensor | None, losses: torch.Tensor
    ) -> None:
        """Count what all processes saw, and remember the rows where a loss of any of them is not a number."""
        tokens = inputs["attention_mask"].sum(1)
        counted = inputs.get("counts", torch.ones_like(tokens))
        not_finite = ~torch.isfinite(losses)
        mass = entropy = torch.zeros_like(losses)
        if isinstance(output, GridDistribution):
            with torch.no_grad():
                mass, entropy = output.mass, output.entropy
        of_rows = [one.to(tokens.device) for one in (tokens, counted, mass, entropy, not_finite)]
        totals = torch.stack([(one * counted).sum().float() for one in of_rows])
        seen, rows, mass_of_all, entropy_of_all, wrong = self.accelerator.gather(totals[None]).sum(0).tolist()
        self._total_train_tokens += int(seen) // self._tp_size
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        if isinstance(output, GridDistribution) and not self.readout.head.sums_to_one and rows:
            self._metrics["train"]["grid_mass"].append(mass_of_all / rows)
            self._metrics["train"]["entropy"].append(entropy_of_all / rows)
        if wrong:
            self._note_non_finite(inputs, not_finite & counted.bool().to(not_finite.device))

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        """The number of examples in the optimizer step, over all processes."""
        if not batch_samples:
            return None
        self._step_batches = batch_samples
        last = batch_samples[-1]
        counts = rows_that_count(self.accelerator, last, self._rows_of_an_epoch(), self._tp_size)
        if not counts.all():
            last["counts"] = counts
        rows = sum(len(batch["labels"]) for batch in batch_samples[:-1]) + int(counts.sum())
        count = torch.tensor(rows, device=device)
        return self.accelerator.gather(count).sum() / self._tp_size

    def _rows_of_an_epoch(self) -> int | None:
        dropped = self.args.dataloader_drop_last or not self.accelerator.even_batches
        return None if dropped or not isinstance(self.train_dataset, Dataset) else len(self.train_dataset)

    # Evaluation

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, dict[str, torch.Tensor], torch.Tensor | None]:
        """A dict of one tensor a quantity, the batch in its first dimension; see `_compute_metrics`.

        No loss is given: `Trainer` would weigh a smaller last batch like a full one. It is a metric instead.
        """
        inputs = self._prepare_inputs(inputs)
        if self._runs_in_step_with_others():
            read = self._read(model, inputs)
        else:
            rows, length = inputs["input_ids"].shape
            parts = self._parts.run(
                lambda some: self._read(model, {name: values[some] for name, values in inputs.items()}), rows, length
            )
            read = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return None, read, inputs.get("labels")

    def _runs_in_step_with_others(self) -> bool:
        """Whether a forward pass is done by several processes together, which must run batches of one size."""
        return self._is_sharded or self.is_distributed_loading_by_transformers or self._tp_size > 1

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _read(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad(), self.compute_loss_context_manager():
            head, losses = self._forward(model, inputs)
            if head.output is None:
                head = self.readout.read_head(model, inputs, unwrapped=self._unwrapped(model))
            reading = self.readout.read(head, self._unwrapped(model), inputs)
        read = {"predictions": reading.predictions}
        if reading.distribution is not None:
            read["log_probs"] = reading.distribution.log_probs
        if reading.parsed is not None and reading.distribution is not None:
            read |= {"parsed": reading.parsed, "rail": self.readout.expectation(reading.distribution)}
        if losses is not None:
            read["losses"] = losses
        return read

    def _compute_metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        read, labels = evaluated.predictions, evaluated.label_ids
        metrics = {"loss": float(read["losses"].mean()), **regression_metrics(read["predictions"], labels)}
        if "log_probs" in read and not self.readout.head.sums_to_one:
            metrics |= grid_metrics(read["log_probs"])
        if "parsed" in read:
            metrics["parsed"] = float(read["parsed"].mean())
            metrics |= {f"rail_{name}": value for name, value in regression_metrics(read["rail"], labels).items()}
        if self._user_compute_metrics is not None:
            metrics |= self._user_compute_metrics(
                EvalPrediction(
                    predictions=read["predictions"],
                    label_ids=labels,
                    inputs=evaluated.inputs,
                    losses=read["losses"] if "loss" in self.args.include_for_metrics else None,
                )
            )
        return metrics

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.label_ids is None:
            return output
        prefix, read = f"{metric_key_prefix}_", output.predictions
        metrics = {name.removeprefix(prefix): value for name, value in output.metrics.items()}
        names = ("rmse", "mae", "pearson", "spearman", "grid_mass", "entropy")
        self.evaluations.pop(metric_key_prefix, None)  # so that the last one is the latest
        self.evaluations[metric_key_prefix] = Evaluation(
            read["predictions"],
            output.label_ids,
            {name: metrics[name] for name in names if name in metrics},
            self._step_of_weights,
        )
        # Where the grid has hardly any mass, the predictions are all near 0, which is said elsewhere
        answers = metrics.get("grid_mass", 1) > 0.5 or self.args.renormalize
        if self.state.global_step > 0 and answers and self.evaluations[metric_key_prefix].is_flat:
            number = number_text(round(float(read["predictions"][0]), 3))
            warn(
                logger,
                f"After step {self.state.global_step} all {metric_key_prefix} predictions are about {number}, "
                "whatever the prompt. If they differed before, training has collapsed: start again with a smaller "
                f"`learning_rate` (now {self.args.learning_rate:g}) or more `warmup_steps`. If not, it has hardly "
                "begun: take more steps, or a larger `learning_rate`.",
            )
        if self.args.log_predictions and self.args.report_to and self.is_world_process_zero():
            prompts = [row["input_ids"] for row in first_rows(dataloader.dataset, self.args.log_predictions)]
            texts = self._tokenizer.batch_decode(prompts, skip_special_tokens=True)
            rows = prediction_rows(texts, output.label_ids, read, self.readout.values.tolist())
            self._table = (f"{prefix}predictions", rows)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if self._table is not None:  # now that those who log have logged the metrics, and are ready
            log_table(*self._table, self.state.global_step, self.callback_handler.callbacks)
            self._table = None
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
        read = output.predictions
        result = RegressionPredictionOutput(read["predictions"], output.label_ids, output.metrics)
        result.distribution, result.rail = None, read.get("rail")
        if "log_probs" in read:
            result.distribution = GridDistribution(torch.from_numpy(read["log_probs"]), self.readout.values)
        return result

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        # `dataloader_drop_last` is for training; `Trainer` would drop rows of an evaluation too
        with _temporarily(self.args, dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with _temporarily(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(test_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        """Rows in order, also where training groups them by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The head has a file of its own, and the model's folder stays an ordinary one. It is taken from the state
        # dict, which is whole where the model itself is in shards.
        head: dict[str, torch.Tensor] = {}
        if self.readout.has_parameters:
            whole = self.model.state_dict() if state_dict is None else state_dict
            prefix = f"{HEAD_NAME}."
            head = {name.removeprefix(prefix): whole[name] for name in whole if name.startswith(prefix)}
            state_dict = {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)}
        folder = output_dir if output_dir is not None else self.args.output_dir
        writes_card = is_ours(folder)  # before PEFT writes a card of its own
        with rows_saved_alone(self.model), _temporarily(self.args, _pickles_tokens=False):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._raft_config().save(folder)
            if head:
                save_head(head, folder)
            (Path(folder) / CALIBRATION_NAME).unlink(missing_ok=True)  # of the weights before
            if writes_card:
                self._save_card(folder)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card into `output_dir`, as every save does; see `SFTTrainer.create_model_card`."""
        if self.is_world_process_zero():
            self._dataset_name = dataset_name or self._dataset_name
            if is_ours(self.args.output_dir):
                self._save_card(self.args.output_dir, model_name, [tags] if isinstance(tags, str) else tags or [])

    def _save_card(self, folder: str, model_name: str | None = None, tags: Sequence[str] = ()) -> None:
        try:
            save_card(self._card_facts(folder, model_name, tags), folder)
        except Exception as error:  # a run must not end for its card, with other processes waiting
            warn(logger, f"The model card of {folder} could not be written: {error!r}. The model itself is saved.")

    def _card_facts(self, folder: str, model_name: str | None, tags: Sequence[str]) -> CardFacts:
        base = get_config_model_id(self.model.config)
        name = model_name or (self.args.hub_model_id or Path(folder).resolve().name).split("/")[-1]
        steps, args = self._step_of_weights, self.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        training = {
            "Steps": f"{steps} of {rows} rows a process",
            "Epochs": f"{self.state.epoch or 0:.3g}",
            "Processes": str(args.world_size),
            "Learning rate": f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}",
            "Optimizer": str(args.optim.value),
            "Seed": str(args.seed),
        }
        adapters = getattr(self.model, "peft_config", {}).values()
        return CardFacts(
            name=name,
            repository=self.hub_model_id or args.hub_model_id or Path(folder).resolve().name,
            base_model=base if base and not Path(base).is_dir() else None,
            dataset_name=self._dataset_name,
            config=self._raft_config(),
            adapter=", ".join(
                f"{one.peft_type.value}, r = {one.r}" if hasattr(one, "r") else one.peft_type.value for one in adapters
            )
            or None,
            training=training if steps else {},
            evaluations={key: one for key, one in self.evaluations.items() if one.step == steps},
            prompt_shape=self._prompt_shape,
            tags=(*self._tag_names, *tags),
            citation=self._paper["citation"],
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `Trainer` copies the files that it knows of from the checkpoint
        for name in (RAFT_CONFIG_NAME, HEAD_FILE):
            if self.is_world_process_zero() and (Path(checkpoint_folder) / name).is_file():
                shutil.copy(Path(checkpoint_folder) / name, self.args.output_dir)
        with _temporarily(self.args, _pickles_tokens=False):
            super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_is_loaded = True
        self._load_head(self.state.best_model_checkpoint)

    @property
    def _step_of_weights(self) -> int:
        best = self.state.best_global_step if self._best_is_loaded else None
        return self.state.global_step if best is None else best

    def _load_head(self, checkpoint: str) -> None:
        if self.readout.has_parameters and not self._is_sharded:  # where the engine's own state holds the head
            self.readout.load_head(Path(checkpoint) / HEAD_FILE)

    def _raft_config(self) -> RaftConfig:
        ids = None if self._grid_token_ids is None else [list(one) for one in self._grid_token_ids]
        head = None if self._custom_head is None else type(self._custom_head).__qualname__
        return RaftConfig(
            values=list(self.grid.values),
            texts=list(self.grid.texts),
            token_ids=ids,
            token_texts=None
            if ids is None
            else [self._tokenizer.decode(one, skip_special_tokens=False) for one in ids],
            separator=self.args.separator,
            max_length=self.args.max_length,
            **self.args.method_settings(),
            head=head,
            base_model=get_config_model_id(self.model.config),
            dtype=str(self.model.dtype).removeprefix("torch."),
            autocast={"bf16": "bfloat16", "fp16": "float16"}.get(self.accelerator.mixed_precision),
            quantization=quantization_of(self.model),
            attn_implementation=own_implementation(self.model.config.get_text_config()),
        )


def _named_datasets(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Dataset | IterableDataset]]:
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named = {"train": train_dataset, **evaluated}
    return [(name, dataset) for name, dataset in named.items() if isinstance(dataset, Dataset | IterableDataset)]
