"""Lists of models, as clients get them; asked for again before a name is unknown: an adapter may have come just now.

Law: all replicas are asked at most once a second, whatever clients name; no other request waits for their answers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from headway.gateway.replicas.probing import read_models
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_AGAIN_SECONDS = 1.0
_TOGETHER = 50  # requests that go on at one turn of the event loop; most are refused then
_ANSWER_SECONDS = 1.0  # how long a request waits for the answers at most


class ModelLists:
    """The lists of one gateway's replicas. `clock` gives seconds."""

    def __init__(self, replicas: Callable[[], Sequence[UpstreamReplica]], clock: Callable[[], float]) -> None:
        self._replicas = replicas
        self._clock = clock
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # that ask, or let in who waited
        self._waiting: list[Callable[[], None]] = []

    def ask_again(self, then: Callable[[], None]) -> bool:
        """Call `then` once the lists are new. False if they are: they came within the last second."""
        if self._asking is None and self._clock() - self._asked_at < _AGAIN_SECONDS:
            return False
        self._waiting.append(then)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
            self._tasks.add(self._asking)
            self._asking.add_done_callback(self._tasks.discard)
        return True

    def close(self) -> None:
        """Ask no more; who waits is not called."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self) -> None:
        replicas = [replica for replica in self._replicas() if replica.is_up]
        await asyncio.gather(*(read_models(replica, _ANSWER_SECONDS) for replica in replicas), return_exceptions=True)
        self._asked_at = self._clock()
        self._asking = None
        waiting, self._waiting = self._waiting, []
        for number, then in enumerate(waiting, 1):
            then()
            if not number % _TOGETHER:
                await asyncio.sleep(0)


def listed_models(replicas: Sequence[UpstreamReplica], settings: Settings) -> dict[str, object]:
    """The models of all replicas that are up, each once, then the aliases of those."""
    merged: dict[str, object] = {}
    for replica in replicas:
        if replica.is_up:
            for name, entry in (replica.state.models or {}).items():
                merged.setdefault(name, entry)
    for alias in settings.aliases:
        target = settings.model_of(alias)
        if target in merged:
            merged[alias] = _as_alias(alias, merged[target])
    return merged


def _as_alias(alias: str, entry: object) -> object:
    """An entry under another name, as vLLM lists a second `--served-model-name`."""
    fields = _FIELDS.decode(entry) if isinstance(entry, msgspec.Raw) else dict(cast("dict[str, object]", entry))
    return {**fields, "id": alias}


def all_list_models(replicas: Sequence[UpstreamReplica]) -> bool:
    """Whether every replica that is up lists its models; one that does not may serve others."""
    return all(replica.state.models for replica in replicas if replica.is_up)


def is_listed(replicas: Sequence[UpstreamReplica], name: str) -> bool:
    """Whether some replica, up or not, has listed a model of this name."""
    return any(name in (replica.state.models or ()) for replica in replicas)


def model_entry(replicas: Sequence[UpstreamReplica], settings: Settings, name: str) -> object | None:
    """A model of a replica that is up, by its name or an alias, without a look at all others."""
    listing, model = (replica.state.models or {} for replica in replicas if replica.is_up), settings.model_of(name)
    entry = next((models[model] for models in listing if model in models), None)
    return entry if entry is None or model == name else _as_alias(name, entry)
