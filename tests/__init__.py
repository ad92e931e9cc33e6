"""Tests of Headway; `support` holds what they share with the benchmarks."""
