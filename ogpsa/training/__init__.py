"""One stage: a TRL trainer with what the method attaches to it, from checkpoint to checkpoint."""
