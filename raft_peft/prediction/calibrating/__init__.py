"""What held-out rows teach about the errors of a model: intervals, a temperature, and a map to the labels."""
