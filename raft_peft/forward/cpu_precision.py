"""Which precision a CPU multiplies fast in."""

from __future__ import annotations

import logging
from typing import Any

import torch

from raft_peft.messages import warn

logger = logging.getLogger(__name__)

# By PyTorch's names, the fastest first.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def bf16_instructions() -> str | None:
    """The CPU's instructions for products in bf16, as x86 names them; None where none are known."""
    known = _capabilities()
    return next((name for key, name in _INSTRUCTIONS.items() if known.get(key)), None)


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU is known to have instructions for products in bf16."""
    return bf16_instructions() is not None


def cpu_emulates_bf16() -> bool:
    """Whether it is an x86 CPU without instructions for bf16, whose products then take many times float32's time."""
    return _capabilities().get("architecture") == "x86_64" and not cpu_multiplies_bf16()


def warn_where_bf16_is_emulated(cure: str) -> None:
    """Say that products in bf16 are slow on this CPU, where they are."""
    if cpu_emulates_bf16():
        warn(
            logger,
            "Products are computed in bf16, for which this CPU has no instructions: that takes many times as long as "
            f"in float32. {cure}",
        )


def _capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()
