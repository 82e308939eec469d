"""From a saved folder, or a base model and a grid, to numbers."""
