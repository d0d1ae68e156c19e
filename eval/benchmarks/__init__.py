"""Benchmarks: definitions, rows, and where these come from."""
