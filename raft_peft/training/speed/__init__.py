"""What a run chooses for speed, by the memory that its step takes."""
