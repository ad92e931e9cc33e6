"""Traces: recorded traffic in and out of files, cut, scaled, merged and described."""
