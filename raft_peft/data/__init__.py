"""From a user's rows to batches: prompts, labels, files of rows, and the checks of each."""
