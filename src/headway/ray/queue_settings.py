"""Settings of the queue in Ray: the keys of the gateway's file that mean the same there, from a file or a mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from headway.config.nearest_name import nearest
from headway.config.toml_file import read_toml
from headway.config.typed_values import read_table
from headway.gateway.settings import Settings
from headway.gateway.settings_file import check

_SHARED = (
    *("policies", "queue", "service_tiers", "offline", "requests", "models", "health"),
    *("tenant", "objectives", "media_tokens"),
)
_OWN = "ray"


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The table `[ray]`.

    Attributes:
        prefill_tokens: Prompt tokens sent to a replica and not computed yet, at most; as of a `[[replica]]`.
        kv_tokens: KV memory of each replica in tokens, for policies that weigh it.
        answer_seconds: A call to the queue actor that takes longer is a fault: its router ranks replicas itself.
        start_seconds: The same while the actor starts, and requests that come wait for it.
        router_seconds: A router that is silent for so long is forgotten, with its requests.
        idle_seconds: The actor ends when it has had no router for so long.
    """

    prefill_tokens: int = 16_384
    kv_tokens: int | None = None
    answer_seconds: float = 5.0
    start_seconds: float = 30.0
    router_seconds: float = 15.0
    idle_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class RayQueueSettings:
    """All that the queue in Ray is told: the gateway's settings, and its own."""

    gateway: Settings
    ray: RaySettings


def read_queue_settings(given: str | Mapping[str, Any]) -> RayQueueSettings:
    """Settings from a TOML file, named by its path, or from a mapping of the same form.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    if not isinstance(given, str | Mapping):
        raise ValueError(f"the settings must be a mapping or the path of a TOML file, got {given!r}")
    content = read_toml(Path(given), given) if isinstance(given, str) else given
    where = f"{given}: " if isinstance(given, str) else ""
    try:
        for key in content:
            if not isinstance(key, str):
                raise ValueError(f"the keys of the settings must be texts, got {key!r}; name tables like 'policies'")
            if key not in (*_SHARED, _OWN):
                _refuse_key(key)
        shared = {key: value for key, value in content.items() if key != _OWN}
        settings = read_table(Settings, shared)
        check(settings)
        table = content.get(_OWN, {})
        if not isinstance(table, Mapping):
            raise ValueError(f"{_OWN} must be a table, got {table!r:.100}")
        own = read_table(RaySettings, table, f"{_OWN}.")
        for one in fields(own):
            value = getattr(own, one.name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{_OWN}.{one.name} must be above 0 and finite, got {value}")
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    return RayQueueSettings(settings, own)


def _refuse_key(key: str) -> None:
    known = [one.name for one in fields(Settings)]
    if key in known:
        raise ValueError(f"{key}: it means nothing inside Ray Serve, which has its own; take it out")
    raise ValueError(f"unknown key {key!r}{nearest(key, (*_SHARED, _OWN))}")
