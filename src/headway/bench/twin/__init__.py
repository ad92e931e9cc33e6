"""Looks of the twin: replays a window of live traffic under many bundles, and steers simulated days by that."""
