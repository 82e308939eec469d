"""Intervals around predictions that cover as many labels as promised."""
