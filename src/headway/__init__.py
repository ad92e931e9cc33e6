"""Headway decides which LLM request runs next, whether it may start, and which one is preempted.

The names of `headway.api` are here, too: `import headway as hw; hw.compare(…)`. They load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headway.version import __version__

if TYPE_CHECKING:
    from headway.api import ComparisonResult, LoadedTrace, Replica, UserMistake, compare, load_trace

__all__ = ["ComparisonResult", "LoadedTrace", "Replica", "UserMistake", "__version__", "compare", "load_trace"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    return getattr(import_module("headway.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
