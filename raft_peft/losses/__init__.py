"""Losses: tensors in, one value an example out. One loss a file."""

from raft_peft.losses.squared_error import squared_error

__all__ = ["squared_error"]
