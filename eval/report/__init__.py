"""What people look at: the page, the training curves, the W&B mirror."""
