"""The training loop and what it needs: optimiser, precision, state, processes."""
