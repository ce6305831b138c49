"""Runs: their data, features, stages and evaluation, built from a config."""
