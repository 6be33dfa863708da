"""Figures that tests measure by the way, shown at the end of a run."""

FIGURE = "figure"
"""The name of such a property of a test."""
