"""The methods that the paper compares, at work on a model, and in a saved folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raft_peft.methods.table import METHODS, Method, MethodSettings

__all__ = ["METHODS", "Method", "MethodSettings"]


# Loaded when first asked for, since the table loads torch, and the fields of the settings do not.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("raft_peft.methods.table"), name)
