"""Recommending: which policies a trace's traffic wants, for what its operator wants, and how sure that is."""
