"""Load tests of a live endpoint: the same traces and the same numbers, in real time."""
