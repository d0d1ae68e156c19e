"""Builders of the paper's data sets, each with its recipe in ``recipes``."""
