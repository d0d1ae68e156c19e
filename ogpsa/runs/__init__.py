"""The run directory, and everything that a run leaves in it."""
