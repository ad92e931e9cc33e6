"""A small API server of Kubernetes over real HTTP: objects by path, listed in pages and watched, with its faults.

It keeps the rules that a client meets: a version that grows with each change, watches from a version on, bookmarks, 410
Gone for versions that it has forgotten, selectors of labels and of names, conflicts of updates, and bearer tokens.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

TOKEN = "token-of-a-test"
PODS = "/api/v1/namespaces/default/pods"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/default/inferencepools"


class KubernetesServer:
    """Starts at a free port, or again at the same one."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}  # path of the kind -> name -> object
        self.tokens = {TOKEN}
        self.asked: list[str] = []  # targets of requests
        self.forgets_below = 0  # versions that are too old by now
        self.bookmarks_seconds = 0.1
        self.ends_watches = False  # each of them after its first bookmark
        self.lists_gone = 0  # so many further pages are answered with 410
        self.port = 0
        self._tls = tls
        self._version = 100
        self._changes: list[tuple[int, str, str, dict[str, Any]]] = []  # version, path, kind of change, object
        self._watches: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> KubernetesServer:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self.port = urlsplit(site.name).port or self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """It is gone, with its connections."""
        self.end_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def end_watches(self) -> None:
        for task in list(self._watches):
            task.cancel()

    @property
    def watches(self) -> int:
        return len(self._watches)

    # What there is

    async def put(self, path: str, content: dict[str, Any]) -> None:
        """Make or change an object."""
        name = content["metadata"]["name"]
        kind = "MODIFIED" if name in self.objects.get(path, {}) else "ADDED"
        self._store(path, kind, content)

    async def delete(self, path: str, name: str) -> None:
        content = self.objects[path][name]
        self._store(path, "DELETED", content)

    def _store(self, path: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        content = json.loads(json.dumps(content))
        content["metadata"]["resourceVersion"] = str(self._version)
        kept = self.objects.setdefault(path, {})
        if kind == "DELETED":
            kept.pop(content["metadata"]["name"])
        else:
            kept[content["metadata"]["name"]] = content
        self._changes.append((self._version, path, kind, content))
        return content

    def forget_versions(self) -> None:
        """Watches that go on from a version of now, or older, are told that it is gone."""
        self._version += 1
        self.forgets_below = self._version

    # HTTP

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(str(request.rel_url))
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _status(401, "Unauthorized")
        path, query = request.path, request.query
        if request.method == "GET" and query.get("watch"):
            return await self._watch(request)
        if request.method == "GET" and path in self.objects:
            return self._list(path, query)
        parent, _, name = path.rpartition("/")
        if request.method == "POST" and path in self.objects:
            return await self._create(path, await request.json())
        found = self.objects.get(parent, {}).get(name)
        if found is None:
            return _status(404, f"{path} not found")
        if request.method == "PUT":
            return await self._update(parent, found, await request.json())
        return web.json_response(found)

    async def _create(self, path: str, content: dict[str, Any]) -> web.StreamResponse:
        if content["metadata"]["name"] in self.objects[path]:
            return _status(409, "AlreadyExists")
        made = self._store(path, "ADDED", content)
        return web.json_response(made, status=201)

    async def _update(self, path: str, found: dict[str, Any], content: dict[str, Any]) -> web.StreamResponse:
        if content["metadata"].get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
            return _status(409, "the object has been modified; please apply your changes to the latest version")
        changed = self._store(path, "MODIFIED", content)
        return web.json_response(changed)

    def _list(self, path: str, query: Any) -> web.StreamResponse:
        if self.lists_gone and "continue" in query:
            self.lists_gone -= 1
            return _status(410, "The provided continue parameter is too old")
        matching = [one for one in self.objects[path].values() if _matches(one, query)]
        begin = int(base64.b64decode(query["continue"])) if "continue" in query else 0
        end = begin + int(query.get("limit", len(matching) or 1))
        more = base64.b64encode(str(end).encode()).decode() if end < len(matching) else ""
        meta = {"resourceVersion": str(self._version), **({"continue": more} if more else {})}
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": matching[begin:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since, path = int(request.query["resourceVersion"]), request.path
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await self._send_changes(response, path, since, request.query)
        self._watches.discard(task)
        return response

    async def _send_changes(self, response: web.StreamResponse, path: str, since: int, query: Any) -> None:
        async def send(kind: str, content: dict[str, Any]) -> None:
            await response.write(json.dumps({"type": kind, "object": content}).encode() + b"\n")

        seen: set[str] = set()
        while True:
            if since < self.forgets_below:
                status = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}
                await send("ERROR", {**status, "message": f"too old resource version: {since}"})
                return
            for version, where, kind, content in list(self._changes):
                if version <= since or where != path:
                    continue
                name = content["metadata"]["name"]
                if _matches(content, query):
                    seen.add(name)
                    await send(kind, content)
                elif name in seen:  # it is selected no more
                    await send("DELETED", content)
            since = self._version
            if query.get("allowWatchBookmarks"):
                await send("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(since)}})
            if self.ends_watches:
                return
            until = asyncio.get_running_loop().time() + self.bookmarks_seconds
            while self._version == since and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.005)

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> str:
        """A file that leads here."""
        file = folder / f"kubeconfig-{self.port}.json"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        file.write_text(json.dumps(content), encoding="utf-8")
        return str(file)


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


def _matches(content: dict[str, Any], query: Any) -> bool:
    labels = content["metadata"].get("labels", {})
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    named = query.get("fieldSelector", "").removeprefix("metadata.name=")
    has_labels = all(labels.get(key) == value for key, _, value in wanted)
    return has_labels and named in ("", content["metadata"]["name"])


def inference_pool(name: str = "engines", ports: tuple[int, ...] = (8000,), **labels: str) -> dict[str, Any]:
    """An InferencePool, as an API server gives it."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "default", "uid": "6f1c1a0e", "generation": 1},
        "spec": {
            "selector": {"matchLabels": labels or {"app": "vllm"}},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "headway-epp", "kind": "Service", "port": {"number": 9002}},
        },
        "status": {"parents": []},
    }


def pod(
    name: str, address: str = "127.0.0.1", *, ready: bool = True, terminating: bool = False, **labels: str
) -> dict[str, Any]:
    """A pod of an engine, as an API server gives it; what no one reads here is left out of its spec."""
    meta: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-of-{name}",
        "labels": labels or {"app": "vllm"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "vllm-5d9c", "controller": True}],
    }
    if terminating:
        meta |= {"deletionTimestamp": "2026-11-30T12:00:30Z", "deletionGracePeriodSeconds": 30}
    condition = {"lastProbeTime": None, "lastTransitionTime": "2026-11-30T12:00:00Z"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.32.0"}], "restartPolicy": "Always"},
        "status": {
            "phase": "Running" if address else "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "True", **condition},
                {"type": "Ready", "status": "True" if ready else "False", **condition},
            ],
            **({"podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.0.0.1"} if address else {}),
        },
    }
