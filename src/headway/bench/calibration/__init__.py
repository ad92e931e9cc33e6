"""Calibration: measured times of a real engine, the simulator's error, and step times that make it small."""
