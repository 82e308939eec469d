"""Typed questions about a state: rows, how they are written, and their tokens."""
