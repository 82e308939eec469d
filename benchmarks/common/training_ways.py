"""Ways to train a decoder to answer with a number, each as a step that can be timed: forward and backward of LoRA."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from common.prompts import like_stsb
from raft_peft import RegressionAwareConfig, RegressionAwareTrainer

GRID = range(6)
LABEL = 3


@dataclass
class StepSettings:
    """What a step is made of."""

    model: str = field(default="google/gemma-3-270m", metadata={"help": "Name or folder of a language model."})
    device: str = field(default="cpu", metadata={"help": "Where to run."})
    batch_size: int = field(default=8, metadata={"help": "Prompts in a batch."})
    bf16: bool = field(default=True, metadata={"help": "Whether to run under bf16 autocast."})
    attn_implementation: str = field(default="eager", metadata={"help": "The attention of the model."})


class BackboneTrainer(Trainer):
    """The floor: the model without any output."""

    def compute_loss(self, model: Any, inputs: dict, *_: Any, **__: Any) -> torch.Tensor:
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return hidden[:, -1].float().square().mean()


class FullLogitsTrainer(Trainer):
    """RAFT as it is often written: the logits of all positions, then those of the last one's grid tokens."""

    grid_token_ids: torch.Tensor

    def compute_loss(self, model: Any, inputs: dict, *_: Any, **__: Any) -> torch.Tensor:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        probs = logits[:, -1].float().softmax(-1)[:, self.grid_token_ids]
        return ((probs * torch.tensor(GRID, device=probs.device)).sum(-1) - LABEL).square().mean()


def make_step(way: str, settings: StepSettings) -> Callable[[], torch.Tensor]:
    """A step of one of `WAYS`, forward and backward, which returns the loss."""
    torch.manual_seed(0)
    trainer = WAYS[way](settings, like_stsb(settings.batch_size))
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.accelerator.prepare(trainer.model)
    (batch,) = list(trainer.get_train_dataloader())
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)

    def step() -> torch.Tensor:
        loss = trainer.training_step(model, dict(batch), count)
        model.zero_grad()
        return loss

    return step


def _options(settings: StepSettings) -> dict[str, Any]:
    return {
        "output_dir": "benchmark-of-a-step",
        "per_device_train_batch_size": settings.batch_size,
        "bf16": settings.bf16,
        "use_cpu": settings.device == "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


def _lora(task_type: str) -> LoraConfig:
    return LoraConfig(r=16, target_modules="all-linear", task_type=task_type)


def _load(auto_class: Any, settings: StepSettings, **options: Any) -> Any:
    model = auto_class.from_pretrained(
        settings.model, dtype=torch.float32, attn_implementation=settings.attn_implementation, **options
    )
    # Weights of a float32 file stay mapped to the disk, which is slower to read, until they are copied; those of a
    # bf16 file are copied when they are converted.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _with_lora(model: Any, task_type: str) -> Any:
    return get_peft_model(model, _lora(task_type))


def _tokenizer(settings: StepSettings) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _plain(trainer_class: type[Trainer], model: Any, settings: StepSettings, prompts: list[str]) -> Any:
    tokenizer = _tokenizer(settings)
    # RAFT reads what stands before the number, with the space where that is a token of its own, and so does every way.
    rows = [
        {"input_ids": tokenizer(f"{prompt} {LABEL}")["input_ids"][:-1], "labels": float(LABEL)} for prompt in prompts
    ]
    return trainer_class(
        model,
        TrainingArguments(remove_unused_columns=False, **_options(settings)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def _backbone(settings: StepSettings, prompts: list[str]) -> Any:
    return _plain(BackboneTrainer, _with_lora(_load(AutoModel, settings), "FEATURE_EXTRACTION"), settings, prompts)


def _head(settings: StepSettings, prompts: list[str]) -> Any:
    model = _with_lora(_load(AutoModelForSequenceClassification, settings, num_labels=1), "SEQ_CLS")
    model.config.pad_token_id = _tokenizer(settings).pad_token_id
    return _plain(Trainer, model, settings, prompts)


def _full_logits(settings: StepSettings, prompts: list[str]) -> Any:
    trainer = _plain(
        FullLogitsTrainer, _with_lora(_load(AutoModelForCausalLM, settings), "CAUSAL_LM"), settings, prompts
    )
    ids = [_tokenizer(settings)(str(number), add_special_tokens=False)["input_ids"][-1] for number in GRID]
    trainer.grid_token_ids = torch.tensor(ids)
    return trainer


def _raft(settings: StepSettings, prompts: list[str], *, padding_free: bool = False) -> Any:
    return RegressionAwareTrainer(
        _load(AutoModelForCausalLM, settings),
        RegressionAwareConfig(padding_free=padding_free, **_options(settings)),
        grid=GRID,
        train_dataset=Dataset.from_list([{"prompt": prompt, "label": float(LABEL)} for prompt in prompts]),
        peft_config=_lora("CAUSAL_LM"),
    )


def _padding_free_raft(settings: StepSettings, prompts: list[str]) -> Any:
    return _raft(settings, prompts, padding_free=True)


def _sft(settings: StepSettings, prompts: list[str]) -> Any:
    return SFTTrainer(
        _load(AutoModelForCausalLM, settings),
        SFTConfig(**_options(settings)),
        train_dataset=Dataset.from_list([{"prompt": prompt, "completion": f" {LABEL}"} for prompt in prompts]),
        peft_config=_lora("CAUSAL_LM"),
    )


def _sft_full_logits(settings: StepSettings, prompts: list[str]) -> Any:
    tokenizer = _tokenizer(settings)
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        target = tokenizer(f" {LABEL}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": ids + target, "labels": [-100] * len(ids) + target})
    return Trainer(
        _with_lora(_load(AutoModelForCausalLM, settings), "CAUSAL_LM"),
        TrainingArguments(**_options(settings)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


WAYS: dict[str, Callable[[StepSettings, list[str]], Any]] = {
    "bare backbone": _backbone,
    "RAFT": _raft,
    "RAFT, padding_free": _padding_free_raft,
    "sequence-classification head": _head,
    "RAFT by full logits": _full_logits,
    "SFT, TRL's fused logits": _sft,
    "SFT by full logits": _sft_full_logits,
}
