"""Engine classes: our scheduler over vLLM's synchronous and asynchronous ones. The scheduler's only import of vLLM."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler as SyncScheduler

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling


class SyncPolicyScheduler(PolicyScheduling, SyncScheduler):  # type: ignore[misc]
    """Over vLLM's synchronous scheduler."""

    queue_base = RequestQueue


class AsyncPolicyScheduler(PolicyScheduling, AsyncScheduler):  # type: ignore[misc]
    """Over vLLM's asynchronous scheduler."""

    queue_base = RequestQueue


def Scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - vLLM expects a class here
    """What `--scheduler-cls headway.vllm_plugin.Scheduler` names: our scheduler over the class vLLM would take."""
    asynchronous = bool(vllm_config.scheduler_config.async_scheduling)
    chosen = AsyncPolicyScheduler if asynchronous else SyncPolicyScheduler
    return chosen(vllm_config, *args, **kwargs)
