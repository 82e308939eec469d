"""Numbers from a model behind a server."""
