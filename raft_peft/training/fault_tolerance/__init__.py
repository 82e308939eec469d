"""A run that is killed, fills a disk or diverges: what is kept of it, and what is said of it."""
