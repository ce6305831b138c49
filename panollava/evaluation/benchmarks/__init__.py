"""Public benchmarks: readers of their files, and their scores as released and corrected."""
