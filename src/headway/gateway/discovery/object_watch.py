"""Objects of Kubernetes, listed once and then watched: all that a selector names, as they are now.

Source: Kubernetes documentation, "API concepts", section "Efficient detection of changes". Laws: after an end of the
watch it goes on at the latest version seen, bookmarks included; where that is too old (410 Gone), all is listed again;
while the server is gone the latest objects stay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Generic, TypeVar

import msgspec

from headway.gateway.discovery.kubernetes_api import ApiServerFault, KubernetesApi
from headway.gateway.discovery.replica_source import SourceReport

_PAGE = "200"  # objects of one answer: some 2 MB of pods, decoded within 10 ms
_WATCH_SECONDS = 240  # then the server ends a watch, which shows that the connection lives
_SILENT_SECONDS = 300.0
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.2, 30.0
_LASTED_SECONDS = 10.0  # a watch that lasts so long is in order, although nothing changes
T = TypeVar("T")


class _ObjectListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _ObjectList(msgspec.Struct):
    metadata: _ObjectListMeta = msgspec.field(default_factory=_ObjectListMeta)
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ObjectMeta(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _ObjectMeta = msgspec.field(default_factory=_ObjectMeta)
    code: int = 0  # of a status, which an event of type ERROR holds
    message: str = ""


_LISTED = msgspec.json.Decoder(_ObjectList)
_EVENT = msgspec.json.Decoder(_Event)
_OBJECT = msgspec.json.Decoder(_Object)


class _Outdated(Exception):
    """The version to go on from is too old for the server."""


class ObjectWatch(Generic[T]):
    """The objects of one kind in one namespace. `api` is used by this watch alone, and closed at its end.

    `read` makes of an object's JSON what is kept of it; it raises `msgspec.DecodeError` for what it cannot read.
    """

    def __init__(
        self, api: KubernetesApi, path: str, selector: Mapping[str, str], read: Callable[[msgspec.Raw], T]
    ) -> None:
        self._api = api
        self._path = path
        self._selector = selector
        self._read = read
        self._objects: dict[str, T] = {}
        self._version = ""
        self._pause_seconds = _PAUSE_SECONDS
        self._chance = random.Random()

    async def follow(self, tell: Callable[[Mapping[str, T]], None], report: SourceReport) -> None:
        """Tell all objects by name, at first and at each change. Runs until cancelled."""
        self._version = ""
        try:
            await self._follow(tell, report)
        finally:
            await self._api.close()

    async def _follow(self, tell: Callable[[Mapping[str, T]], None], report: SourceReport) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                    report.well(self._path)
                    tell(self._objects)
                await self._watch(tell, report)
            except _Outdated:
                self._version = ""
            except ApiServerFault as fault:
                report.failed(str(fault), self._path)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._version = ""
                why = f"the API server answered {self._path} with what is no Kubernetes object: {error}"
                report.failed(why, self._path)
            await self._pause()

    async def _pause(self) -> None:
        """A moment after a watch that brought something; else ever longer, so that no server is flooded."""
        seconds = self._pause_seconds
        self._pause_seconds = min(_PAUSE_SECONDS_MAX, 2 * seconds)
        await asyncio.sleep(seconds * self._chance.uniform(0.5, 1.0))

    async def _list(self) -> None:
        objects: dict[str, T] = {}
        query, version = {**self._selector, "limit": _PAGE}, ""
        while True:
            try:
                page = _LISTED.decode(await self._api.ask("GET", self._path, query))
            except ApiServerFault as fault:
                if fault.status == HTTPStatus.GONE and "continue" in query:
                    raise _Outdated from None
                raise
            for raw in page.items or ():
                objects[_OBJECT.decode(raw).metadata.name] = self._read(raw)
            version = page.metadata.resource_version
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        if not version:
            raise ApiServerFault(f"the API server answered {self._path} with a list without a version")
        self._objects, self._version = objects, version

    async def _watch(self, tell: Callable[[Mapping[str, T]], None], report: SourceReport) -> None:
        """Follow the changes until the server ends the watch."""
        seconds = int(_WATCH_SECONDS * self._chance.uniform(0.75, 1.0))
        more = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        query = {**self._selector, **more, "resourceVersion": self._version}
        began = asyncio.get_running_loop().time()
        try:
            async for line in self._api.events(self._path, query, _SILENT_SECONDS):
                if not line.strip():
                    continue
                if self._take(line):
                    tell(self._objects)
                self._pause_seconds = _PAUSE_SECONDS
                report.well(self._path)
        except ApiServerFault as fault:
            if fault.status == HTTPStatus.GONE:
                raise _Outdated from None
            raise
        if asyncio.get_running_loop().time() - began >= _LASTED_SECONDS:
            self._pause_seconds = _PAUSE_SECONDS
            report.well(self._path)

    def _take(self, line: bytes) -> bool:
        """Take one event in; whether an object changed."""
        event = _EVENT.decode(line)
        found = _OBJECT.decode(event.object)
        if event.type == "ERROR":
            raise ApiServerFault(f"the API server ended a watch: {found.message[:300]}", found.code)
        name = found.metadata.name
        if event.type in ("ADDED", "MODIFIED"):
            self._objects = {**self._objects, name: self._read(event.object)}
        elif event.type == "DELETED":
            self._objects = {other: one for other, one in self._objects.items() if other != name}
        self._version = found.metadata.resource_version or self._version
        return event.type != "BOOKMARK"
