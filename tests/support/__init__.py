"""Helpers that several test files share. The test files import them as ``support.<module>``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
REAL_DATA = ROOT.parent / "shared" / "data"
"""Real photographs and answers. Tests that read them skip where they are missing."""
