"""Experiments in the simulator: one trace under several policies at several loads."""
