"""Ordering policies: which request runs next? One file per policy."""
