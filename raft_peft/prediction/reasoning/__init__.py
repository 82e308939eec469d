"""Predictions with reasons: reasonings that the model writes, and the numbers behind them."""
