"""Several processes: who they are, how they are launched, and what trainers are told of them."""
