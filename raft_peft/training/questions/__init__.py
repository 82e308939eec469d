"""Training on typed questions: several about one text, each with options of its own."""
