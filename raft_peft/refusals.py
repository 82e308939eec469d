"""What `SFTTrainer` offers and a regression loss cannot honour."""

from __future__ import annotations

from typing import Any

import torch


def refuse_token_callables(compute_loss_func: Any, preprocess_logits_for_metrics: Any, formatting_func: Any) -> None:
    """Raise a ValueError for arguments of `SFTTrainer` that work on token logits."""
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


def refuse_offloading_without_accelerator(args: Any) -> None:
    """Raise a ValueError where activations would be moved to the memory in which they already are."""
    settings = {
        "activation_offloading=True": args.activation_offloading,
        "gradient_checkpointing_kwargs={'offload': True}": (args.gradient_checkpointing_kwargs or {}).get("offload"),
    }
    for setting, is_set in settings.items():
        if is_set and not torch.accelerator.is_available():
            raise ValueError(
                f"`{setting}` moves activations from an accelerator to the CPU's memory, and there is no accelerator. "
                "Leave it off; `gradient_checkpointing=True` saves memory on the CPU."
            )


def refuse_sequence_sharding(parallelism: Any) -> None:
    """Raise a ValueError where the rows would be split over processes."""
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism split each row over processes, and only one of them would hold the "
            "final position that the loss reads. Set cp_size and sp_size to 1; use FSDP or DeepSpeed ZeRO instead."
        )
