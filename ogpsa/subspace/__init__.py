"""The capability subspace: its basis, the reference gradients that it comes from, and its removal from gradients."""
