"""Experiments and load tests: traffic, metrics, comparisons, calibration and reports."""
