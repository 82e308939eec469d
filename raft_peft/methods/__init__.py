"""The methods that the paper compares, at work on a model, and in a saved folder."""

from raft_peft.methods.table import METHODS, Method, MethodSettings

__all__ = ["METHODS", "Method", "MethodSettings"]
