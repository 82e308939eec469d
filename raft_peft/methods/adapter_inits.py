"""Initializations of adapters that change the base model, and which of them a saved adapter can be opened with again.

PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take from the base model what they begin the adapter with, and KaSA cuts the
base down. An adapter's file does not hold that change. PEFT makes it anew when the adapter is opened, from the base
model's weights: the same where these alone decide (an exact decomposition), and another one where chance does, or the
data of that time.
"""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from raft_peft.forward.model import base_model

_REBUILT = ("pissa", "olora")
_KEEPING = (
    "Or keep it, and save what it makes of the base model as a base of its own: model = get_peft_model(model, "
    "peft_config); adapter = model.peft_config['default']; adapter.init_lora_weights = True; "
    "adapter.base_model_name_or_path = 'new-base'; model.save_pretrained('start'); "
    "model.unload().save_pretrained('new-base'). Then pass 'start' to the trainer as the model, without `peft_config`."
)
# By the beginnings of their names in `init_lora_weights`: why the change is not the same again, and what else to take.
_NOT_REBUILT = {
    "pissa_niter": (
        "decomposes the base model with random numbers",
        f"Set init_lora_weights='pissa', whose decomposition is exact. {_KEEPING}",
    ),
    "corda": (
        "decomposes the base model by activations that no folder holds",
        f"Set init_lora_weights='eva', which leaves the base model as it is. {_KEEPING}",
    ),
    "lora_ga": (
        "takes gradients out of the base model that no folder holds",
        f"Set init_lora_weights=True. {_KEEPING}",
    ),
    "loftq": (
        "rounds the base model to what a quantized one would hold, with results that depend on the device",
        "Open the base model with `quantization_config`, and call peft.replace_lora_weights_loftq on it with its "
        "adapter, which changes the adapter alone.",
    ),
}


def refuse_init_for_once(peft_config: Any, *, adapter: str | None = None) -> None:
    """Refuse an adapter whose initialization changed the base model in a way that cannot be repeated.

    Args:
        peft_config: the adapter's configuration.
        adapter: the folder or repository of a saved one; None before training.

    Raises:
        ValueError: it did, or would.
    """
    init = str(getattr(peft_config, "init_lora_weights", None)).lower()
    for name, (reason, cure) in _NOT_REBUILT.items():
        if not init.startswith(name):
            continue
        if adapter is None:
            raise ValueError(
                f"init_lora_weights={init!r} {reason}. So the base model of training could not be made again, and the "
                f"saved adapter would predict something else. {cure}"
            )
        raise ValueError(
            f"The adapter in {adapter!r} was trained with init_lora_weights={init!r}, which {reason}. The base model "
            "of that time cannot be made again from what is saved. Train again with another `init_lora_weights`; or, "
            "if you have the base model that it was trained on as a folder, write that folder into "
            "adapter_config.json as `base_model_name_or_path`, and true as `init_lora_weights`."
        )


def rebuilt_layers(model: Any) -> set[str]:
    """The names of the layers that an adapter changed, and will change alike when it is opened again."""
    adapters = getattr(model, "peft_config", {}).values()
    if not any(_is_rebuilt(adapter) for adapter in adapters):
        return set()
    named = base_model(model).named_modules()
    return {re.sub(r"\.base_layer\b", "", name) for name, module in named if isinstance(module, BaseTunerLayer)}


def _is_rebuilt(peft_config: Any) -> bool:
    init = str(getattr(peft_config, "init_lora_weights", None)).lower()
    return init in _REBUILT or getattr(peft_config, "kasa_config", None) is not None
