"""What vLLM imports by name: our scheduler over the class that vLLM would take, and nothing else."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import headway.vllm_plugin
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine

ENGINE_CLASSES = "headway.vllm_plugin.engine_classes"


class Sync(StubEngine):
    """Stands in for vLLM's synchronous scheduler; it is built with vLLM's configuration first."""

    def __init__(self, vllm_config: object, log_stats: bool) -> None:
        super().__init__()
        self.log_stats = log_stats


class Async(Sync):
    """And for its asynchronous one."""


class RequestQueue:
    """Stands in for vLLM's."""


@cache
def offered() -> Any:
    """What vLLM gets by the name it is told, imported once, with stand-ins for vLLM's own classes."""
    parts: dict[str, dict[str, object]] = {
        "vllm": {},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.core.sched": {},
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": Async},
        "vllm.v1.core.sched.request_queue": {"RequestQueue": RequestQueue},
        "vllm.v1.core.sched.scheduler": {"Scheduler": Sync},
    }
    modules = {name: ModuleType(name) for name in parts}
    for name, holds in parts.items():
        vars(modules[name]).update(holds)
    with mock.patch.dict(sys.modules, modules):
        scheduler, module = headway.vllm_plugin.Scheduler, sys.modules[ENGINE_CLASSES]
    sys.modules[ENGINE_CLASSES] = module  # `patch.dict` took it away with the rest
    return scheduler


@pytest.mark.parametrize(("asynchronous", "base"), [(True, Async), (False, Sync)])
def test_the_scheduler_is_ours_over_the_one_that_vllm_would_take(asynchronous: bool, base: type) -> None:
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=asynchronous))
    made = offered()(config, log_stats=True)
    assert isinstance(made, PolicyScheduling)
    assert next(kind for kind in type(made).__mro__ if kind in (Async, Sync)) is base
    assert made.log_stats is True
    assert isinstance(made.waiting, PolicyQueue)
    assert isinstance(made.waiting, RequestQueue), "vLLM asks for its own kind"


def test_nothing_else_is_offered() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Schedulers'"):
        headway.vllm_plugin.Schedulers  # type: ignore[attr-defined] # noqa: B018
