"""What training starts from: the model, its tokenizer, the adapter's configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import PeftConfig, TaskType
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, set_seed

from raft_peft.training.config import RegressionAwareConfig
from raft_peft.training.number_tokens import with_number_tokens
from raft_peft.training.quantization import dtype_beside


def random_model(model: Any, args: RegressionAwareConfig, quantization_config: Any, peft_config: Any) -> Any:
    """A model of the architecture named, with random weights (`init="random"`).

    Raises:
        ValueError: no name was given, or not all weights would be trained.
    """
    if not isinstance(model, str):
        raise ValueError("`init='random'` needs the model's name, to take its architecture from. Pass it as a string.")
    if quantization_config is not None or peft_config is not None:
        raise ValueError(
            "`init='random'` trains all weights: an adapter on random weights, or random weights quantized, could "
            "not be loaded again. Leave out `peft_config` and `quantization_config`."
        )
    options = dict(args.model_init_kwargs or {})
    trust = {"trust_remote_code": options.pop("trust_remote_code", args.trust_remote_code)}
    of_config = {name: options.pop(name) for name in ("attn_implementation", "dtype") if name in options}
    options.pop("device_map", None)
    config = AutoConfig.from_pretrained(model, **options, **trust)
    set_seed(args.seed)
    return AutoModelForCausalLM.from_config(config, **trust, **{"dtype": torch.float32, **of_config})


def init_kwargs_of(args: RegressionAwareConfig, quantization_config: Any) -> dict[str, Any]:
    """How a model given by its name is loaded: as `model_init_kwargs` says, and by default as is best here."""
    options = dict(args.model_init_kwargs or {})
    dtype = dtype_beside(quantization_config)
    if dtype is not None:
        options.setdefault("dtype", dtype)
    if args.bf16 and args.device.type == "cpu" and options.get("attn_implementation") is None:
        options["attn_implementation"] = "eager"  # the fastest in training by benchmarks/cpu_precision.py
    return options


def processing_class_of(model: str, args: RegressionAwareConfig) -> Any:
    """The tokenizer or processor of a model given by its name, of the same revision."""
    revision = (args.model_init_kwargs or {}).get("revision")
    return AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)


def reloadable(peft_config: PeftConfig | None, model: Any, args: RegressionAwareConfig) -> PeftConfig | None:
    """The adapter's configuration with what `AutoPeftModelForCausalLM` needs to open the same model again.

    Raises:
        ValueError: the configuration is for another task, or cannot hold the model's tokens of numbers.
    """
    peft_config = with_number_tokens(peft_config, model)
    if not isinstance(peft_config, PeftConfig):
        return peft_config
    if peft_config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ValueError(
            f"The adapter's task_type is {peft_config.task_type}, but the numbers are read from a language model's "
            "next-token probabilities. Set task_type='CAUSAL_LM'."
        )
    revision = peft_config.revision
    if isinstance(model, str) and revision is None:
        revision = (args.model_init_kwargs or {}).get("revision")
    if peft_config.task_type == TaskType.CAUSAL_LM and peft_config.revision == revision:
        return peft_config
    return dataclasses.replace(peft_config, task_type=TaskType.CAUSAL_LM, revision=revision)
