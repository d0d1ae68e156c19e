"""Composing and validating a command: the only code that knows Hydra."""
