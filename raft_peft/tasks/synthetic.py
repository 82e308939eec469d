"""The synthetic task *Original #1*: a smooth function of one number, read off a prompt (the paper's Table 6)."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

GRID = range(10)

# The paper's sizes (its Table 7).
SPLIT_SIZES = {"train": 10_000, "validation": 1_000, "test": 1_000}

PROMPT = (
    "The task is to provide your best estimate for 'output score' based on 'input score'. Please provide that and "
    "only that, without any additional text. Input score: {x}. Output score:"
)


def original_1(x: np.ndarray) -> np.ndarray:
    """y = x + 10 sin(5 pi x / 100) + 10 cos(6 pi x / 100), for x in [0, 100]."""
    x = np.asarray(x, dtype=np.float64)
    return x + 10 * np.sin(5 * np.pi * x / 100) + 10 * np.cos(6 * np.pi * x / 100)


def normalized_original_1(x: np.ndarray) -> np.ndarray:
    """The function scaled so that its values on [0, 100] fill [0, 9], the range of the grid."""
    values = original_1(np.linspace(0, 100, 100_001))
    low, high = values.min(), values.max()
    return np.clip((original_1(x) - low) / (high - low) * 9, 0, 9)


def load_synthetic(rows: int, *, seed: int = 0) -> Dataset:
    """Draw rows of `prompt`, `label` and `x`, x uniform in [0, 100]; x and label are rounded to two decimals."""
    x = np.random.default_rng(seed).uniform(0, 100, rows).round(2)
    return Dataset.from_dict(
        {
            "prompt": [PROMPT.format(x=f"{value:.2f}") for value in x],
            "label": normalized_original_1(x).round(2),
            "x": x,
        }
    )
