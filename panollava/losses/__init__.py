"""Training losses and the diagnostics that tell whether they can be trusted."""
