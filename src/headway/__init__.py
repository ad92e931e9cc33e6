"""Headway decides which LLM request runs next, whether it may start, and which one is preempted."""

__version__ = "0.1.0"
