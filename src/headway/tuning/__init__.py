"""Tuning: search for good values of a policy's declared options, from live or simulated feedback."""
