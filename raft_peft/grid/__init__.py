"""The grid: the numbers that a model may answer with, and their tokens behind a text. Loads no torch."""

from raft_peft.grid.number_grid import NumberGrid
from raft_peft.grid.number_text import decimals_of, meant_number, number_text

__all__ = ["NumberGrid", "decimals_of", "meant_number", "number_text"]
