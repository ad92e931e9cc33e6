"""Inside vLLM: `--scheduler-cls headway.vllm_plugin.Scheduler` orders vLLM's waiting queue by our policies.

Everything here but `engine_classes` and `stat_logger` runs without vLLM, so that the laws can be tested without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.vllm_plugin.engine_classes import Scheduler

__all__ = ["Scheduler"]


def __getattr__(name: str) -> Any:
    """Import vLLM only when its scheduler is asked for."""
    if name != "Scheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headway.vllm_plugin.engine_classes import Scheduler  # noqa: PLC0415

    return Scheduler
