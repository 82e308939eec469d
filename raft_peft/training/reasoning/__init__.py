"""Training on reasons and scores: a text that the model is to write, and the number behind it."""
