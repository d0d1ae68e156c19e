"""The views of finished runs: the page, the projection's curves, the W&B mirror."""
