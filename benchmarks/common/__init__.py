"""What benchmarks share: ways timed in turn, memory in a process of its own, prompts and models made on the spot."""
