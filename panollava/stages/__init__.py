"""Stages: what trains, what is counted, and what a step costs."""
