"""The encoder baselines of the paper: a bidirectional encoder with a linear output, trained on the squared error."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from torch.nn.functional import mse_loss
from transformers import (
    AutoConfig,
    AutoModel,
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
from raft_peft.methods.pretrained import open_tokenizer

POOLINGS = ("cls", "mean")


class EncoderRegressor(nn.Module):
    """b + w . pooled, in the unit of the labels and in float32, of the output embeddings of an encoder.

    w starts at small random numbers.

    Args:
        encoder: a model that reads in both directions, such as `AutoModel` loads it.
        pooling: cls, the output at the first token, or mean, of the outputs over the real tokens.
        frozen: whether w and b alone are trained. The encoder then stays in evaluation mode.
        bias: where b starts; the mean of the labels is a good place.

    Raises:
        ValueError: there is no such pooling, or the model is no encoder.
    """

    def __init__(self, encoder: PreTrainedModel, *, pooling: str, frozen: bool, bias: float = 0.0):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"There is no pooling {pooling!r} of an encoder's outputs. Use {' or '.join(POOLINGS)}.")
        self.encoder = encoder
        self.pooling = pooling
        self.frozen = frozen
        self._takes_token_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        for name, weights in encoder.named_parameters():
            if frozen or name.startswith("pooler."):  # BERT's own pooler, which nothing reads here
                weights.requires_grad_(False)
        self.output = nn.Linear(_hidden_size(encoder), 1, dtype=torch.float32)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.constant_(self.output.bias, bias)

    def train(self, mode: bool = True) -> EncoderRegressor:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The prediction of each row, `logits` of shape (batch,), and with labels the mean squared error, `loss`.

        Args:
            input_ids: of shape (batch, length).
            attention_mask: 1 at real tokens and 0 at padding, of shape (batch, length).
            labels: of shape (batch,).
            token_type_ids: of shape (batch, length); left out for an encoder that knows none.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and self._takes_token_types:
            inputs["token_type_ids"] = token_type_ids
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = self.encoder(**inputs).last_hidden_state
        with torch.autocast(states.device.type, enabled=False):
            predictions = self.output(self._pool(states.float(), attention_mask.bool())).squeeze(-1)
            if labels is None:
                return {"logits": predictions}
            return {"loss": mse_loss(predictions, labels.float()), "logits": predictions}

    def _pool(self, states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """From (batch, length, hidden) to (batch, hidden)."""
        if self.pooling == "mean":
            return (states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
        first = real.int().argmax(1)  # not 0 where a tokenizer pads on the left
        return states[torch.arange(len(states), device=states.device), first]


def encoder_trainer(
    model_name: str,
    dataset: DatasetDict,
    *,
    pooling: str,
    frozen: bool,
    args: TrainingArguments,
    label_column: str = "label",
    max_length: int | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
) -> tuple[Trainer, Dataset]:
    """A trainer of an [`EncoderRegressor`], and the rows to test it on.

    It trains on the split `train`, validates on `validation`, and reports rmse, mae, pearson and spearman, any of
    which `args.metric_for_best_model` may name; the least error or the greatest correlation is the best, whatever
    `args.greater_is_better` says. A checkpoint holds the state dict of the `EncoderRegressor`, the encoder's included,
    and the tokenizer.

    Args:
        model_name: name or folder of the encoder. Its weights are loaded in float32.
        dataset: `train`, `validation` and `test`, of `prompt` (text) and a label.
        pooling: cls or mean.
        frozen: whether the linear output alone is trained.
        args: the settings of the run. The seed is that of the linear output too.
        label_column: name of the column that holds the target number.
        max_length: tokens of a prompt, special tokens included; a longer one loses its beginning. An encoder that can
            read fewer sets the limit itself.
        callbacks: as in `Trainer`.

    Returns:
        The trainer, and the tokenized test split. `trainer.predict(test).predictions` has the shape (rows,), in the
        order of the rows. The other splits are `trainer.train_dataset` and `trainer.eval_dataset`.

    Raises:
        ValueError: rows, labels or a model that cannot be used; the message says what to do.
    """
    check_dataset(dataset)
    if AutoConfig.from_pretrained(model_name).is_encoder_decoder:
        raise ValueError(
            f"{model_name} has a decoder after its encoder, and the baseline reads the outputs of an encoder. Use an "
            "encoder, such as FacebookAI/roberta-large."
        )
    tokenizer = open_tokenizer(model_name, truncation_side="left")
    if tokenizer.pad_token is None:
        raise ValueError(
            f"The tokenizer of {model_name} has no padding token, and a batch has rows of different length. Save it "
            "with tokenizer.pad_token set, or use an encoder that has one."
        )
    encoder = AutoModel.from_pretrained(model_name, dtype=torch.float32)
    limit = _limit(tokenizer, encoder, max_length)
    tokenized = {split: _tokenize(dataset[split], split, tokenizer, label_column, limit) for split in SPLITS}
    set_seed(args.seed)
    trainer = BaselineTrainer(
        EncoderRegressor(encoder, pooling=pooling, frozen=frozen, bias=float(np.mean(tokenized["train"]["label"]))),
        with_direction(args),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        compute_metrics=metrics_of,
        callbacks=None if callbacks is None else list(callbacks),
    )
    return trainer, tokenized["test"]


@torch.no_grad()
def _hidden_size(encoder: PreTrainedModel) -> int:
    """The size of the output embeddings.

    Raises:
        ValueError: the output at the first token does not depend on the last token, so that the model is a decoder.
    """
    embeddings = encoder.get_input_embeddings()
    size = embeddings.num_embeddings
    a, b, c, d = [i for i in range(size // 2, size) if i != encoder.config.pad_token_id][:4]  # ordinary tokens
    rows = torch.tensor([[a, b, c], [a, b, d]], device=embeddings.weight.device)
    was_training = encoder.training
    states = encoder.eval()(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state.float()
    encoder.train(was_training)
    first = states[:, 0]
    if (first[0] - first[1]).abs().max() <= 1e-5 * first.abs().max():
        raise ValueError(
            f"{type(encoder).__name__} ({encoder.name_or_path or 'unnamed'}) reads from left to right, so its first "
            "output does not depend on later tokens. The baseline needs an encoder, which reads in both directions, "
            "such as FacebookAI/roberta-large. For a decoder, use the method `pooled`."
        )
    return states.shape[-1]


def _limit(tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, max_length: int | None) -> int:
    """Tokens of the longest row that the encoder can read, or that is asked for."""
    limits = [min(tokenizer.model_max_length, 2**31 - 1)]  # 1e30 where the tokenizer knows none
    if max_length is not None:
        limits.append(max_length)
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions begin behind that of the padding token
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def _tokenize(
    dataset: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, label_column: str, max_length: int
) -> Dataset:
    """Rows of what the tokenizer gives, and `label` as float64.

    Raises:
        ValueError: a column is missing, the split is empty, or rows cannot be used.
    """
    return tokenize_split(
        dataset,
        name,
        label_column=label_column,
        read=_plain_text,
        encode=lambda prompts: tokenizer(prompts, truncation=True, max_length=max_length),
        columns=list(tokenizer("a")),
        limit=max_length,
    )


def _plain_text(row: Mapping[str, Any]) -> str:
    """The prompt of a row.

    Raises:
        ValueError: it is no text.
    """
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        raise ValueError(
            f"the prompt is a {type(prompt).__name__}, and an encoder reads plain text. Join the messages of the chat "
            "into one text."
        )
    return prompt
