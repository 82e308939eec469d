"""Amounts of memory, read and written."""

from __future__ import annotations

import math
import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {f"{letter}IB": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {letter: _UNITS[f"{letter}B"] for letter in "KMGT"}


def parse_bytes(size: str | float) -> int:
    """The bytes of "24GB" or "24 GiB"; what is no text but a number is in GB.

    GB is 10^9 bytes and GiB is 2^30. A card sold with 24 GB has a little less than 24 GiB, which is more.

    Raises:
        ValueError: not an amount of memory, or a text without a unit.

    >>> parse_bytes("24GB"), parse_bytes("1 GiB"), parse_bytes(0.5)
    (24000000000, 1073741824, 500000000)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(size), re.IGNORECASE)
    if match and not match[2] and isinstance(size, str):
        raise ValueError(
            f"{size!r} is not an amount of memory, since it has no unit. Write {match[1]}GB (10^9 bytes) or "
            f"{match[1]}GiB (2^30 bytes)."
        )
    unit = (match[2].upper() or "GB") if match else ""
    value = float(match[1]) if match else 0.0
    if unit not in _UNITS or not 0 < value < math.inf:
        raise ValueError(
            f"{size!r} is not an amount of memory. Write it like 24GB (10^9 bytes) or 24GiB (2^30 bytes)."
        )
    return int(value * _UNITS[unit])


def format_bytes(size: float) -> str:
    """An amount of memory to be read, in GB or MB.

    >>> format_bytes(17.96e9), format_bytes(1.2e6), format_bytes(0)
    ('17.96 GB', '1 MB', '0 MB')
    """
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.0f} MB"
