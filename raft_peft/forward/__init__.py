"""One forward pass of a language model, read at the few positions where a number begins."""
