"""Verdicts on the responses."""
