"""The kinds of intervals, by their names. Loads no torch, so that the help of a command is quick."""

from __future__ import annotations

INTERVALS = ("constant", "adaptive", "quantiles")
