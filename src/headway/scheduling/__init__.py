"""Scheduling: one queue and the policies that rule it, shared by the simulator, the gateway and the vLLM plug-in."""
