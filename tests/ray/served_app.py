"""Deployments for the checks on a real Ray: they take as long as a file says, and write down what they were asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from headway.ray.described_request import Description

KEY = "the-key-of-team-a"
_LOOK_SECONDS = 0.005


def describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Description | None:
    """What a call of `Described` says of itself."""
    told = args[0].get("facts") if args and isinstance(args[0], Mapping) else None
    return None if told is None else Description(**told)


class _Held:
    """A model that holds each request until the file of its name is there."""

    def __init__(self, place: str) -> None:
        self._place = Path(place)

    async def _run(self, name: str) -> dict[str, Any]:
        with (self._place / "order").open("a") as order:
            order.write(f"{name}\n")
        while not (self._place / f"go-{name}").exists() and not (self._place / "go").exists():
            await asyncio.sleep(_LOOK_SECONDS)
        return {"name": name, "pid": os.getpid()}


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Held(_Held):
    """Asked over HTTP, or by a handle with a body."""

    async def __call__(self, request: Any) -> Any:
        if not isinstance(request, Request):
            return await self._run(request["name"])
        body = json.loads(await request.body())
        if body.get("stream"):
            return StreamingResponse(self._parts(body["name"]), media_type="text/event-stream")
        return JSONResponse(await self._run(body["name"]))

    async def streamed(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        """A stream for a handle."""
        async for part in self._parts(body["name"]):
            yield part

    async def _parts(self, name: str) -> AsyncIterator[str]:
        await self._run(name)
        for number in range(3):
            yield f"data: {number}\n\n"


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Ingress:
    """An OpenAI ingress as Ray's own: it reads the body and calls the model's handle."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def __call__(self, request: Request) -> Response:
        body = json.loads(await request.body())
        return JSONResponse(await self._model.remote(body, headers=dict(request.headers)))


@serve.deployment(ray_actor_options={"num_cpus": 0})
class HeldBehind(_Held):
    """Asked by an ingress, with an OpenAI body and the client's headers."""

    async def __call__(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        return await self._run(body["name"])
