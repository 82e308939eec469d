"""Ways timed in turn, again and again in one process, so that a slow moment of the machine meets all of them.

Each turn has an order of its own: what runs behind a way that takes much memory pays for it.
"""

import ctypes
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from raft_peft import NumberGrid
from raft_peft.data.batches import RegressionCollator
from raft_peft.data.prompts import PromptEncoder
from raft_peft.forward.cpu_precision import bf16_instructions
from raft_peft.methods.saved_folder import installed_versions


def time_in_turn(ways: dict[str, Callable[[], Any]], turns: int, device: str = "cpu") -> dict[str, list[float]]:
    """The seconds that each way takes in each turn, after one to warm up."""
    _keep_freed_memory()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    for turn in range(turns + 1):
        shuffle(order)
        for name in order:
            started = time.perf_counter()
            ways[name]()
            if device != "cpu":
                torch.accelerator.synchronize()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: else a way pays for the pages that another gave back, as it would not alone."""
    if platform.libc_ver()[0] == "glibc":
        # The parameters' numbers in malloc.h.
        trim_threshold, mmap_max = -1, -4
        allocator = ctypes.CDLL(None)
        allocator.mallopt(trim_threshold, -1)
        allocator.mallopt(mmap_max, 0)


def ratios(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of the ratios in the same turn."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(times, base, strict=True)], n=4)
    return low, middle, high


def make_batches(
    tokenizer: Any, grid: NumberGrid, rows: Iterable[dict], size: int, *, by_length: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Batches of encoded rows, in their order or of like length."""
    encoded = PromptEncoder(tokenizer, grid).encode(list(rows))
    if by_length:
        encoded.sort(key=lambda one: len(one.input_ids))
    features = [{"input_ids": one.input_ids, "grid_token_ids": one.grid_token_ids} for one in encoded]
    collate = RegressionCollator(pad_token_id=0)
    return [collate(features[start : start + size]) for start in range(0, len(features), size)]


def device_name(device: str) -> str:
    """The device that a benchmark ran on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return ", ".join(filter(None, (model, bf16_instructions(), f"{torch.get_num_threads()} threads")))


def write(args: Any, report: dict[str, Any]) -> None:
    """Write a report to `args.output`, where that is given, with the versions and the other arguments of the run."""
    if args.output is not None:
        settings = {name: value for name, value in vars(args).items() if name != "output"}
        contents = {"versions": installed_versions(), "settings": settings, **report}
        Path(args.output).write_text(json.dumps(contents, indent=1) + "\n")
