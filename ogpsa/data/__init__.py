"""Rows: reading them, building them, and finding those that occur twice."""
