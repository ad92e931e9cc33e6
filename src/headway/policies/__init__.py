"""Policies: pure rules that decide. No I/O, no clock, no randomness of their own, no third-party import."""
