"""Traffic against a live endpoint: the same traces, the same numbers, on the wall clock."""
