"""Options of a Ray Serve deployment that give it the queue: `@serve.deployment(**queued(...), num_replicas=2)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray.serve.config import RequestRouterConfig

from headway.ray.described_request import describing
from headway.ray.queue_settings import read_queue_settings


def queued(
    settings: str | os.PathLike[str] | Mapping[str, Any] | None = None, describe: str | None = None
) -> dict[str, Any]:
    """The options that put a deployment's requests into one queue, across all proxies and handles.

    Args:
        settings: a TOML file that every node has, or a mapping of the same form; the keys are in docs/ray.md.
        describe: `module:function` that says what is known of a call, for calls without an OpenAI body.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    given = {} if settings is None else os.fspath(settings) if isinstance(settings, os.PathLike) else settings
    read_queue_settings(given)
    describing(describe)
    arguments: dict[str, Any] = {"settings": given}
    if describe is not None:
        arguments["describe"] = describe
    router = "headway.ray.queued_router:QueuedRouter"
    return {"request_router_config": RequestRouterConfig(request_router_class=router, request_router_kwargs=arguments)}
