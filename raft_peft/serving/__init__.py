"""A scoring server: trained folders behind HTTP, in the shapes of the decisions APIs and as plain predictions."""
