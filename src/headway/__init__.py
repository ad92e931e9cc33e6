"""Headway decides which LLM request runs next, whether it may come in, and who gives way."""

__version__ = "0.1.0"
