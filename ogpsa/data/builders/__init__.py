"""Builders of data sets, each with its recipe in ``recipes``."""
