"""Rows whose score has reasons before it: a text that the model writes, and words that lead to the number."""
