"""Quantized base models: the usual choice as a shorthand, and the precision of what is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from raft_peft.forward.cpu_precision import cpu_emulates_bf16


def qlora(r: int = 16, **lora: Any) -> dict[str, Any]:
    """The arguments of [`RegressionAwareTrainer`] for QLoRA as it is usually done (Dettmers et al., NeurIPS 2023).

    The base model's linear layers are stored in NF4 with double quantization, at 0.52 bytes a parameter, and computed
    in bf16, or in float32 on a CPU that only emulates bf16; all of them get LoRA.

    ```python
    trainer = RegressionAwareTrainer("google/gemma-2-27b-it", grid=[1, 2, 3, 4, 5], train_dataset=dataset, **qlora())
    ```

    Args:
        r: the rank of LoRA; `lora_alpha` is twice as much unless it is given.
        lora: of `peft.LoraConfig`, such as `lora_dropout` or `target_modules`.

    Returns:
        A dict of `quantization_config` and `peft_config`.
    """
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=usual_dtype(quantized=True),
        ),
        "peft_config": LoraConfig(
            **{"r": r, "lora_alpha": 2 * r, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
        ),
    }


def usual_dtype(*, quantized: bool, on_cpu: bool | None = None) -> str:
    """The dtype of a model's dense weights unless told otherwise, in which its quantized layers also compute.

    That is float32 without quantization and bf16 with it, but not where a CPU emulates bf16.

    Args:
        quantized: whether the model is.
        on_cpu: whether it runs on this CPU; None where it does if there is nothing else.
    """
    on_cpu = not torch.accelerator.is_available() if on_cpu is None else on_cpu
    return "bfloat16" if quantized and not (on_cpu and cpu_emulates_bf16()) else "float32"


def dtype_beside(quantization_config: Any) -> torch.dtype | None:
    """The dtype of what a quantized model leaves dense: that in which its 4-bit layers compute; None for the default.

    An embedding of 256,000 rows of 4,608 takes 4.7 GB in float32, TRL's default, and half of that in bf16.
    """
    if not getattr(quantization_config, "load_in_4bit", False):
        return None
    return quantization_config.bnb_4bit_compute_dtype


def trained_tensors(model: Any) -> dict[torch.nn.Parameter, torch.Tensor]:
    """The tensors that a model trains now, each beside its parameter; none for a model given by name."""
    if isinstance(model, str):
        return {}
    return {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}


def keep_precision(model: Any, before: dict[torch.nn.Parameter, torch.Tensor], *, fsdp: bool) -> None:
    """Undo TRL's cast of all that is trained on a quantized base to bf16.

    There AdamW's updates at the end of a schedule are smaller than what bf16 tells apart, and are lost. What was
    there before the cast comes back as it was; an adapter that is new is trained in float32. FSDP wants one dtype for
    all: there the dtype in which the quantized weights are stored (`bnb_4bit_quant_storage`) decides.

    Args:
        model: the model as TRL left it.
        before: its `trained_tensors` before that.
        fsdp: whether FSDP shards it.
    """
    storage = getattr(model.config.quantization_config, "bnb_4bit_quant_storage", None) if fsdp else None
    if fsdp and not (isinstance(storage, torch.dtype) and storage.is_floating_point):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            kept = before.get(parameter, parameter.data.float())
            parameter.data = kept if storage is None else kept.to(storage)
