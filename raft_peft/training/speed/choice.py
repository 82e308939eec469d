"""What a run chooses for speed if its settings leave it open: gradient checkpointing, and rows without padding."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel

from raft_peft.forward.attention import DENSE, own_implementation
from raft_peft.forward.memory import free_memory
from raft_peft.methods import METHODS
from raft_peft.training.speed.checkpointing import set_checkpointing
from raft_peft.training.speed.step_memory import bytes_of_step

logger = logging.getLogger(__name__)

# A step must fit into the free memory so many times: its backward pass, and other programs, take some, too.
_SAFETY = 1.5


def choose_for_speed(trainer: Any) -> None:
    """Set `gradient_checkpointing` and `padding_free` in a trainer's settings where they are None, and log the choice.

    `gradient_checkpointing` is off if a training step without it fits one and a half times into the free memory, see
    `bytes_of_step`. It stays on, as in TRL, if this cannot be known: if the model is split over processes (FSDP,
    DeepSpeed, tensor parallelism) or devices; on an accelerator that is no NVIDIA GPU; for weights that are quantized,
    but not to 4 bits by bitsandbytes; with `activation_offloading`; and for a stream of rows.

    `padding_free` is on if the run is on a CPU, and the method and the model can use it. On a GPU it is off: there a
    small model was slower with it. With several questions or reasonings a row it is on everywhere, since it computes
    each text once.

    Of several processes all choose the same.

    Args:
        trainer: a `RegressionAwareTrainer` with its model, its datasets and its readout.
    """
    args, chosen = trainer.args, []
    if args.padding_free is None:
        args.padding_free = _pays_without_padding(trainer) and trainer.readout.layouts.take_padding_free(trainer.model)
        chosen.append(f"`padding_free={args.padding_free}`")
    if args.gradient_checkpointing is None:
        checkpointing, reason = _choose_checkpointing(trainer)
        set_checkpointing(args, checkpointing)
        chosen.insert(0, f"`gradient_checkpointing={checkpointing}`, since {reason}")
        if not checkpointing and isinstance(trainer.model, PeftModel):
            # TRL lets gradients flow to the embeddings, which checkpointing alone needs.
            trainer.model.disable_input_require_grads()
    if chosen and trainer.train_dataset is not None and trainer.is_world_process_zero():
        logger.info("Chosen for speed: %s.", "; ".join(chosen))


def _choose_checkpointing(trainer: Any) -> tuple[bool, str]:
    """Whether to compute activations again in the backward pass, and why."""
    reason = _why_unknown(trainer)
    if reason is not None:
        return True, reason
    device, processes = trainer.args.device, trainer.args.world_size
    try:
        needed = bytes_of_step(trainer)
    # Whatever an architecture makes of a trial, or a grid too large. Training raises it where it is no matter of this.
    except Exception as error:
        logger.debug("The memory of a training step could not be measured.", exc_info=error)
        needed = math.inf
    # Each process has a GPU of its own, while all share the memory of the CPU.
    free = free_memory(device) / (processes if device.type == "cpu" else 1)
    worst = torch.tensor([[needed, -free]], dtype=torch.float64, device=device)
    needed, free = (trainer.accelerator.gather(worst).amax(0).abs()).tolist()
    if needed == math.inf:
        return True, "the memory of a step could not be measured"
    sizes = f"a step takes about {_in_gb(needed)} without it and {_in_gb(free)} are free"
    return (False, sizes) if _SAFETY * needed <= free else (True, f"{sizes}, less than {_SAFETY} times as much")


def _why_unknown(trainer: Any) -> str | None:
    """Why it cannot be known whether a step fits without checkpointing; None where it can."""
    args, model = trainer.args, trainer.model
    devices = {parameter.device for parameter in model.parameters()}
    reasons = {
        "the model came with it": any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
        "there are no rows to train on": trainer.train_dataset is None,
        "the lengths of a stream's rows are not known": not isinstance(trainer.train_dataset, Dataset),
        "the model is split over processes": trainer.runs_in_step_with_others,
        "the model is on several devices, or moved later": len(devices) > 1 or devices.pop().type != args.device.type,
        f"the free memory of {args.device.type!r} is not known": args.device.type not in ("cpu", "cuda"),
        "`activation_offloading` is on": args.activation_offloading,
        "the memory of such quantized weights is not known": getattr(model, "is_quantized", False)
        and not getattr(model, "is_loaded_in_4bit", False),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _pays_without_padding(trainer: Any) -> bool:
    """Whether to lay rows end to end where the model can read them so."""
    return (
        (trainer.args.device.type == "cpu" or trainer.shares_prompts)
        and trainer.train_dataset is not None
        and not METHODS[trainer.args.method].trains_text
        and not trainer.runs_in_step_with_others
        and own_implementation(trainer.model.config.get_text_config()) in DENSE
    )


def _in_gb(size: float) -> str:
    """A number of bytes in GB, with two digits that count.

    >>> _in_gb(1234567890), _in_gb(23456789012)
    ('1.2 GB', '23 GB')
    """
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"
