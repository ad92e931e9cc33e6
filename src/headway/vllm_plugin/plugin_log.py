"""Plug-in log: a logger below vLLM's own, so that vLLM's handlers and levels apply."""

import logging

logger = logging.getLogger("vllm.headway")
