"""Helpers that tests share, also with the benchmarks: scripted replicas, gateways, days worked out by hand, engines."""
