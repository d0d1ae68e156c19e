"""Null spaces of the linear layers' inputs on general rows, for NSPO (arXiv 2512.11391)."""
