"""Which precision a CPU multiplies fast in."""

from __future__ import annotations

import logging
from typing import Any

import torch

from raft_peft.main_process import warn

logger = logging.getLogger(__name__)


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU is known to have instructions for products in bf16: x86's AMX or AVX512-BF16."""
    return any(_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))


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
