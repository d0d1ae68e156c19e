"""Several processes: their ranks, their launch, and the trainers' arguments for them."""
