"""The trainer of a run of a comparison."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import DatasetDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback, TrainingArguments

from raft_peft.compare.compared_method import ComparedMethod
from raft_peft.compare.encoders import encoder_trainer
from raft_peft.compare.sequence_classification import sequence_classification_trainer
from raft_peft.compare.settings import CompareSettings
from raft_peft.data.labels import as_number
from raft_peft.grid import NumberGrid
from raft_peft.methods import METHODS
from raft_peft.methods.pretrained import open_tokenizer
from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.number_tokens import add_number_tokens, start_rows_at_random
from raft_peft.training.quantization import qlora, usual_dtype
from raft_peft.training.recipes import get_recipe
from raft_peft.training.trainer import RegressionAwareTrainer

if TYPE_CHECKING:
    from raft_peft.compare.run import Run


def trainer_of(run: Run, dataset: DatasetDict, folder: Path, callback: TrainerCallback) -> tuple[Any, Any]:
    """The trainer of a run, and the rows to test it on.

    Args:
        run: what it was told.
        dataset: `train`, `validation` and `test`.
        folder: of the run.
        callback: of the trainer.
    """
    settings, method = CompareSettings(**run.comparison), ComparedMethod.parse(run.method)
    arguments = _arguments(run, settings, method, folder)
    if not method.is_baseline:
        return _language_model(run, settings, method, arguments, dataset, callback), dataset["test"]
    shared: dict[str, Any] = {
        "args": TrainingArguments(**arguments),
        "max_length": settings.max_length,
        "callbacks": [callback],
    }
    if method.is_encoder:
        pooling, frozen = method.name.removeprefix("encoder_"), method.options.get("frozen", False)
        trainer, test = encoder_trainer(str(settings.encoder), dataset, pooling=pooling, frozen=frozen, **shared)
    else:
        trainer, test = sequence_classification_trainer(
            settings.model,
            dataset,
            peft_config=_lora(settings),
            quantization_config=_quantization(settings),
            model_options=_model_options(settings),
            **shared,
        )
    if settings.gradient_checkpointing:
        # `Trainer` would look for it on the model around the encoder. Older versions have the other name alone.
        model = trainer.model.encoder if method.is_encoder else trainer.model
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return trainer, test


def _arguments(run: Run, settings: CompareSettings, method: ComparedMethod, folder: Path) -> dict[str, Any]:
    """The `TrainingArguments` of a run."""
    recipe = get_recipe(settings.recipe)
    rate = run.learning_rate
    best = method.trains and settings.keep == "best"
    return {
        **recipe.arguments,
        "output_dir": str(folder / "checkpoints"),
        "learning_rate": rate or 0.0,
        "lr_scheduler_kwargs": None if rate is None else recipe.scheduler_options(rate),
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "per_device_eval_batch_size": settings.eval_batch_size,
        "eval_strategy": "steps" if method.trains else "no",
        "eval_steps": settings.eval_steps,
        "eval_on_start": True,
        "save_strategy": "steps" if best else "no",
        "save_steps": settings.eval_steps,
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": best,
        "metric_for_best_model": "rmse",
        "greater_is_better": False,
        "logging_steps": settings.eval_steps,
        "bf16": settings.bf16,
        "use_cpu": not torch.accelerator.is_available(),
        "seed": run.seed,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _language_model(
    run: Run,
    settings: CompareSettings,
    method: ComparedMethod,
    arguments: dict[str, Any],
    dataset: DatasetDict,
    callback: TrainerCallback,
) -> RegressionAwareTrainer:
    options, quantization = _model_options(settings), _quantization(settings)
    model, tokenizer, grid = settings.model, None, NumberGrid(dict(run.grid))
    if method.number_tokens is not None:
        model, tokenizer, grid = _with_number_tokens(method, settings.model, grid, options, quantization)
        options, quantization = {}, None
    args = RegressionAwareConfig(
        **arguments,
        method=method.name,
        **method.options,
        max_length=settings.max_length,
        gradient_checkpointing=settings.gradient_checkpointing,
        padding_free=settings.padding_free and method.trains and not METHODS[method.name].trains_text,
        model_init_kwargs=options or None,
    )
    trainer = RegressionAwareTrainer(
        model,
        args,
        grid=grid,
        processing_class=tokenizer,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"] if method.trains else None,
        quantization_config=quantization,
        peft_config=_lora(settings) if method.trains else None,
        callbacks=[callback],
    )
    if method.token_rows == "random":
        encoded: Any = trainer.train_dataset
        start_rows_at_random(trainer.model, itertools.chain.from_iterable(encoded[0]["grid_token_ids"]))
    return trainer


def _model_options(settings: CompareSettings) -> dict[str, Any]:
    """The options with which the language model is opened."""
    options = {
        "dtype": usual_dtype(quantized=settings.load_in_4bit),
        **get_recipe(settings.recipe).model_options(settings.model),
    }
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    return options


def _quantization(settings: CompareSettings) -> BitsAndBytesConfig | None:
    return qlora()["quantization_config"] if settings.load_in_4bit else None


def _lora(settings: CompareSettings) -> LoraConfig | None:
    """The adapter of the recipe; None where it trains all weights."""
    lora = get_recipe(settings.recipe).lora
    return None if lora is None else LoraConfig(**lora)


def _with_number_tokens(
    method: ComparedMethod, name: str, grid: NumberGrid, options: dict[str, Any], quantization: Any
) -> tuple[Any, Any, NumberGrid]:
    """The model and its tokenizer with a new token for each number, and the grid of them."""
    tokenizer = open_tokenizer(name)
    model = AutoModelForCausalLM.from_pretrained(name, quantization_config=quantization, **options)
    # Texts of numbers are written anew, since "3" is a token already and "3.0" becomes one.
    are_numbers = all(as_number(text) == value for value, text in grid)
    added = add_number_tokens(
        model, tokenizer, list(grid.values) if are_numbers else grid, init=str(method.number_tokens)
    )
    return model, tokenizer, added
