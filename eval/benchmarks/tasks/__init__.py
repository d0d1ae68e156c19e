"""The benchmarks' definitions, and the functions that they name."""
