"""Metrics of one run: its numbers, its curves, and how they agree with measured times."""
