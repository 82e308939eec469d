"""TRL's `SFTTrainer` with a number for a target."""
