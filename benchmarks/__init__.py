"""Benchmarks and studies: what things cost (`cost`), and what the results pages rest on (`studies`)."""
