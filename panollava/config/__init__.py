"""Configuration: canonical command lines, the strict check, and Hydra's callbacks."""
