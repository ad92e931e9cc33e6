"""What decides: pure rules, no I/O, no clock, no randomness of their own, no third-party import."""
