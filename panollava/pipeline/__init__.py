"""What a run does, in order: train its stages, evaluate, report."""
