"""Panoramas cut into views, each with the camera that took it."""
