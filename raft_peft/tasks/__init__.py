"""Datasets of the paper: rows of `prompt` and `label`, with the grid they are scored on. One task a file."""
