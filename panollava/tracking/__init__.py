"""Tracking of runs: parameters, metrics, images and tables; the only package that imports MLflow."""
