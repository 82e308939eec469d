"""Typed questions answered: the predictor of answers, and what is made of them."""
