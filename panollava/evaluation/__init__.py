"""Evaluation by answers: running the questions, scoring them, and showing the results."""
