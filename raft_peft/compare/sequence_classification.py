"""The baseline that most people have today: transformers' own sequence classification with one output."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from peft import PeftConfig, TaskType, get_peft_model
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from raft_peft.compare.baselines import BaselineTrainer, metrics_of, tokenize_split, with_direction
from raft_peft.compare.rows import SPLITS, check_dataset
from raft_peft.data.chats import render_chat
from raft_peft.data.limits import ModelLimits
from raft_peft.data.prompts import check_max_length, cut_beginning, rows_error
from raft_peft.methods.adapter_inits import refuse_init_for_once
from raft_peft.methods.pretrained import check_shards, open_tokenizer
from raft_peft.methods.saved_folder import find_file, hub_options
from raft_peft.training.quantization import usual_dtype


class Float32Linear(nn.Linear):
    """A linear layer that computes in its own dtype, float32, also under autocast and behind layers in bf16.

    bf16 has 8 bits: between 4 and 8 it tells apart only numbers that are 1/32 from each other.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def sequence_classification_trainer(
    model_name: str,
    dataset: DatasetDict,
    *,
    args: TrainingArguments,
    peft_config: PeftConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    model_options: Mapping[str, Any] | None = None,
    label_column: str = "label",
    max_length: int | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
) -> tuple[Trainer, Dataset]:
    """A trainer of `AutoModelForSequenceClassification(num_labels=1)` on a decoder, and the rows to test it on.

    The prediction is w . h, where h is the output embedding of the prompt's last token. It has no bounds, and w
    (`score`) starts at random numbers. Model, loss (the mean squared error of a batch) and `Trainer` are those of
    transformers. What users have to set is set:

    - The padding token is the tokenizer's, or its end of sequence where it has none. Model and tokenizer have the
      same, and prompts are padded on the right, so that a prediction does not depend on the other rows of its batch.
    - `score` is never quantized. It is stored, computed and trained in float32, and so are its predictions.
    - With an adapter, `score` is trained and saved beside it (`modules_to_save`).

    ```python
    lora = LoraConfig(target_modules="all-linear")
    trainer, test = sequence_classification_trainer(
        "google/gemma-2-2b", dataset, args=TrainingArguments("run"), peft_config=lora
    )
    trainer.train()
    trainer.predict(test).predictions
    ```

    It trains on the split `train`, validates on `validation`, and reports the metrics of the other methods, any of
    which `args.metric_for_best_model` may name; the least error or the greatest correlation is the best, whatever
    `args.greater_is_better` says. `AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1,
    pad_token_id=tokenizer.pad_token_id)` opens a saved adapter.

    Args:
        model_name: name or folder of the language model. Where it is a sequence classifier with one output already,
            that is trained on.
        dataset: `train`, `validation` and `test`, of `prompt` (text or chat messages) and a label, a number or
            ratings. A chat is written by the tokenizer's template, with the generation prompt.
        args: the settings of the run. The seed is that of `score` and of the adapter too.
        peft_config: the adapter; None to train all weights.
        quantization_config: for QLoRA. It needs an adapter.
        model_options: of `from_pretrained`, such as `attn_implementation`. By default the weights are float32, or with
            quantization the dense ones bf16 where the CPU or GPU has it.
        label_column: name of the column that holds the label.
        max_length: tokens of a prompt; a longer one loses its beginning. A model with fewer positions sets the limit
            itself.
        callbacks: as in `Trainer`.

    Returns:
        The trainer, and the tokenized test split. `trainer.predict(test).predictions` has the shape (rows,), in
        float32 and in the order of the rows. The other splits are `trainer.train_dataset` and `trainer.eval_dataset`.

    Raises:
        ValueError: rows, labels, a model or an adapter that cannot be used; the message says what to do.
    """
    check_dataset(dataset)
    check_max_length(max_length)
    peft_config = _for_classification(peft_config)
    if quantization_config is not None and peft_config is None:
        raise ValueError("Quantized weights are not trained. Set `peft_config`, or leave out `quantization_config`.")
    options = model_options or {}
    tokenizer = _padding_tokenizer(model_name, hub_options(options))
    set_seed(args.seed)
    model = _open(model_name, tokenizer, quantization_config, options)
    limits = ModelLimits.of(model)
    if peft_config is not None:
        model = get_peft_model(model, peft_config)
    length = min((one for one in (max_length, limits.positions) if one is not None), default=None)
    tokenized = {split: _tokenize(dataset[split], split, tokenizer, label_column, length) for split in SPLITS}
    for split in SPLITS:
        _check_tokens(tokenized[split]["input_ids"], tokenizer, limits)
    trainer = BaselineTrainer(
        model,
        with_direction(args),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        preprocess_logits_for_metrics=_numbers,
        compute_metrics=metrics_of,
        callbacks=None if callbacks is None else list(callbacks),
    )
    return trainer, tokenized["test"]


def _numbers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """From (batch, 1) to (batch,)."""
    return logits.squeeze(-1)


def _for_classification(peft_config: PeftConfig | None) -> PeftConfig | None:
    """A copy of an adapter's configuration, for the task; PEFT adds `score` to its `modules_to_save`.

    Raises:
        ValueError: it is for another task, or could not be opened again.
    """
    if peft_config is None:
        return None
    if peft_config.task_type not in (None, TaskType.SEQ_CLS):
        raise ValueError(
            f"The adapter's task_type is {peft_config.task_type}, and the baseline is sequence classification. Set "
            "task_type='SEQ_CLS', or leave it out."
        )
    refuse_init_for_once(peft_config)
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = TaskType.SEQ_CLS
    return peft_config


def _padding_tokenizer(model_name: str, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token, which goes on the right.

    There the positions of the real tokens start at 0, as they do without padding.

    Raises:
        ValueError: it has neither a padding token nor an end of sequence.
    """
    tokenizer = open_tokenizer(model_name, padding_side="right", **hub)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of {model_name} has neither a padding token nor an end of sequence, and a batch has "
                "rows of different length. Save it with tokenizer.pad_token set."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _open(
    model_name: str,
    tokenizer: PreTrainedTokenizerBase,
    quantization_config: BitsAndBytesConfig | None,
    options: Mapping[str, Any],
) -> PreTrainedModel:
    """The decoder with one output, `score`, in float32, which knows the padding token.

    Raises:
        ValueError: there is none of this architecture, or not all other weights are in the folder.
    """
    hub = hub_options(options)
    if find_file(model_name, ADAPTER_CONFIG_NAME, hub) is not None:
        raise ValueError(
            f"{model_name!r} holds an adapter, and the baseline starts from a whole language model. Pass its base "
            "model, or merge the adapter first (`raft-peft merge`)."
        )
    check_shards(model_name)
    config = AutoConfig.from_pretrained(model_name, **hub)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classification for {config.model_type}, the architecture of "
            f"{model_name!r}. Use a method that reads the output embeddings of any decoder: special_token or pooled."
        )
    dtype = usual_dtype(quantized=quantization_config is not None)
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        model_name,
        num_labels=1,
        problem_type="regression",
        quantization_config=quantization_config,
        output_loading_info=True,
        **{"dtype": dtype, **options},
    )
    head = getattr(model, "score", None)
    # A quantized layer is of a class that extends `nn.Linear`.
    if type(head) is not nn.Linear:
        raise ValueError(
            f"{type(model).__name__} has no linear `score`, which decoders have. Use a decoder such as Llama, Qwen or "
            "Gemma; for an encoder, the methods encoder_cls and encoder_mean."
        )
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("score."))
    if missing:
        raise ValueError(
            f"{model_name!r} does not hold all weights of {type(model).__name__}: {', '.join(missing[:3])} would be "
            "random numbers. Pass the folder of a whole language model."
        )
    model.score = _in_float32(head)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
        config.use_cache = False
    # Its loss is the mean of a batch, whatever it is told of the other batches of a step. Without this `Trainer` would
    # not divide it by their number.
    model.accepts_loss_kwargs = False
    return model


def _in_float32(head: nn.Linear) -> Float32Linear:
    """The same layer as a `Float32Linear`."""
    made = Float32Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    made.load_state_dict({name: weights.float() for name, weights in head.state_dict().items()}, assign=True)
    return made


def _tokenize(
    dataset: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, label_column: str, max_length: int | None
) -> Dataset:
    """Rows of `input_ids`, and `label` as float64.

    Raises:
        ValueError: as `tokenize_split`.
    """

    def read(row: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a prompt, and whether it is a chat, which begins with its own special tokens."""
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return prompt, False
        if isinstance(prompt, Sequence) and prompt and all(isinstance(message, Mapping) for message in prompt):
            return render_chat(tokenizer, prompt, row).text, True
        raise ValueError(f"the prompt is {prompt!r:.80}. It must be a text, or a list of chat messages.")

    def encode(prompts: list[tuple[str, bool]]) -> dict[str, list]:
        ids = [tokenizer(text, add_special_tokens=not is_chat)["input_ids"] for text, is_chat in prompts]
        return {"input_ids": [cut_beginning(one, tokenizer, max_length) for one in ids]}

    return tokenize_split(
        dataset,
        name,
        label_column=label_column,
        read=read,
        encode=encode,
        columns=["input_ids"],
        limit=max_length,
    )


def _check_tokens(prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, limits: ModelLimits) -> None:
    """Raise a ValueError where the model has no embedding for a token, or a prompt cannot be told from padding."""
    # A number of one token in place of the numbers of a grid, as there are none.
    number = [[tokenizer.pad_token_id]]
    limits.check_columns(prompts, [number] * len(prompts))
    alike = [row for row, ids in enumerate(prompts) if set(ids) == {tokenizer.pad_token_id}]
    if alike:
        raise rows_error([(row, "the prompt has no token but the padding token. Drop the row.") for row in alike])
