"""Fuzzing with coverage: the laws of every reader of foreign bytes, and a search for bytes that break one."""
