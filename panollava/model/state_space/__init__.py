"""state_space."""
