"""A number as text: the shortest decimal that means it at the precision in which it was given."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

# The largest float32, and the smallest that has all its digits.
_LARGEST_SINGLE, _SMALLEST_SINGLE = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
# A decimal of so many digits survives in float32, and a float32 is written with so many at most.
_KEPT_DIGITS, _MOST_DIGITS = 6, 9


def number_text(value: Any) -> str:
    """The text of a number, without exponent and without trailing zeros: 1.0 is "1", 0.5 is "0.5"."""
    # Adding 0.0 turns -0.0 into 0.0.
    rounded = float(f"{meant_number(value):.12g}") + 0.0
    return np.format_float_positional(rounded, trim="-")


def decimals_of(number: Any) -> int:
    """How many digits behind the point its shortest text has."""
    return len(number_text(number).partition(".")[2])


def meant_number(value: Any, precision: str | None = None) -> float:
    """The number that the shortest text of a value writes, at the value's own precision.

    A column of float32 holds 3.8 as 3.7999999523. Whoever wrote 3.8 into it means 3.8.

    >>> meant_number(np.float32(3.8)), meant_number(3.7999999523162842), meant_number(0.1)
    (3.8, 3.8, 0.1)

    Args:
        value: a number of Python, NumPy or torch. A Python float counts as a float32 where it is one exactly, and
            is written with few digits there and with many as a double.
        precision: the name of the type of the column that it comes from, such as float32; by default the value's.

    Raises:
        TypeError, ValueError: it is not a number.
    """
    number = float(value)
    if precision is None:
        precision = str(getattr(value, "dtype", "")).rpartition(".")[2]
    if precision == "bfloat16":
        return _shortest_bfloat16(number)
    if precision in ("float16", "float32"):
        with np.errstate(over="ignore"):
            return float(str(np.dtype(precision).type(number)))
    if precision not in ("", "float64") or not _SMALLEST_SINGLE <= abs(number) <= _LARGEST_SINGLE:
        return number
    single = np.float32(number)
    is_single = float(single) == number and _digits(repr(number)) > _MOST_DIGITS
    return float(str(single)) if is_single and _digits(str(single)) <= _KEPT_DIGITS else number


def _digits(text: str) -> int:
    """The significant digits of a number's text."""
    mantissa = text.lower().partition("e")[0].lstrip("-").replace(".", "")
    return len(mantissa.strip("0"))


def _shortest_bfloat16(number: float) -> float:
    """The number of fewest digits that is the same in bfloat16, whose significand has 8 bits."""
    with contextlib.suppress(OverflowError, ValueError):
        for digits in range(1, 5):
            candidate = float(f"{number:.{digits}g}")
            if _as_bfloat16(candidate) == number:
                return candidate
    return number


def _as_bfloat16(number: float) -> float:
    """The nearest number whose significand has 8 bits; of two, the even one."""
    mantissa, exponent = np.frexp(number)
    return float(np.ldexp(np.round(mantissa * 256) / 256, exponent))
