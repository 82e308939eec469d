"""Memory measured in a process of its own, where nothing that ran before is resident."""

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns, run in a new process.

    There glibc gives back what is freed as soon as it is as large as the tensors that count; what it would keep
    depends on the order of sizes.
    """
    os.environ.update(MALLOC_MMAP_THRESHOLD_="16384", MALLOC_TRIM_THRESHOLD_="16384")
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"], os.environ["MALLOC_TRIM_THRESHOLD_"]


def peak_growth(run: Callable[[], Any], device: str = "cpu") -> int:
    """The bytes that are held at most while something runs, beyond those held before."""
    if device != "cpu":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    restart_peak()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def restart_peak() -> None:
    """Give back to the operating system what nothing refers to, and let the peak of resident memory start anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(kind: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since the peak was last reset (VmHWM)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) * 1024
