"""Adapters whose effect on a token depends on the tokens around it, so that not every layout reads them alike."""

from __future__ import annotations

from typing import Any

from peft import PeftType

# Most adapters change each token by itself, and a trial tells how the layers around them take a layout. These look at
# other tokens or at the attention, and change nothing as long as they are new, so that no trial would find it out.
# They stand by their names, since not every version of PEFT knows all of them.
_OF_THE_ROW = ("ADAPTION_PROMPT", "POLY", "SHADOW", "XLORA")


def check_adapters(model: Any) -> None:
    """Refuse adapters with which a prompt's number would change with the other prompts of its batch.

    Raises:
        ValueError: the model has one.
    """
    for adapter in _adapters(model):
        if adapter.is_prompt_learning and adapter.peft_type != PeftType.PREFIX_TUNING:
            raise ValueError(
                f"The adapter is of the type {adapter.peft_type.value}, whose virtual tokens stand before the "
                "padding of a row, so that its numbers would change with the batch. Use LoRA or prefix tuning."
            )
        if adapter.peft_type == "LILY":
            raise ValueError(
                "The adapter is of the type LILY, which mixes its experts by their mean over all tokens of a batch, "
                "padding included, so that numbers would change with the batch. Use LoRA."
            )


def why_rows_stay_whole(model: Any) -> str | None:
    """Why a row must be read by itself and from its beginning, for the sake of an adapter; None where it need not."""
    for adapter in _adapters(model):
        if getattr(adapter, "alora_invocation_tokens", None) is not None:
            return "its adapter is an activated LoRA, which acts from certain tokens of a row on"
        if adapter.peft_type in _OF_THE_ROW:
            return f"its adapter is of the type {PeftType(adapter.peft_type).value}, which reads the row as a whole"
    return None


def _adapters(model: Any) -> list[Any]:
    return list(getattr(model, "peft_config", {}).values())
