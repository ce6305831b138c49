"""Tracking of runs: parameters, metrics, pictures and tables; the only room that knows MLflow."""
