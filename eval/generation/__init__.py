"""Responses of a model to the benchmarks' rows."""
