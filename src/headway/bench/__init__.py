"""Workloads, traces, experiments and reports around the simulator."""
