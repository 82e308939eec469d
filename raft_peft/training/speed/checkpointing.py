"""Activation checkpointing among the settings of a run, by all the names that it has in transformers and TRL."""

from __future__ import annotations

from typing import Any

# The first is TRL's name. transformers renamed it, and older versions do not have the second.
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


def checkpointing_asked_for(args: Any) -> bool | None:
    """Whether activations are to be computed again in the backward pass; None where it is left open.

    Who says how, by `gradient_checkpointing_kwargs`, asks for it.
    """
    for name in _CHECKPOINTING[::-1]:
        if getattr(args, name, None) is not None:
            return getattr(args, name)
    return True if any(getattr(args, f"{name}_kwargs", None) for name in _CHECKPOINTING) else None


def checkpointing_names(args: Any) -> list[str]:
    """The names of activation checkpointing among the settings, in the installed transformers."""
    return [name for name in _CHECKPOINTING if hasattr(args, name)]


def set_checkpointing(args: Any, value: bool | None) -> None:
    """Turn activation checkpointing on or off, or leave it open, by all its names."""
    for name in checkpointing_names(args):
        setattr(args, name, value)
