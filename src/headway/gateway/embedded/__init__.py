"""Embedded engine: a simulated engine in real time behind an OpenAI API, for a gateway without replicas."""
