"""The requests that a calibration sends: streamed completions of known lengths, one connection each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headway.bench.load_test.completion_stream import StreamFault
from headway.bench.load_test.stream_client import Served, StreamClient
from headway.bench.user_mistake import UserMistake


class Server:
    """An OpenAI-compatible server at a base address, with or without `/v1` at its end.

    Output lengths are pinned by vLLM's `ignore_eos`; where a server does not know it, the usage that it reports at the
    end says how long the answer was.

    Raises:
        UserMistake: the address is none, no server answers there, or the answer is not what a completion server says.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = StreamClient(url, kept_seconds=0)

    async def first_model(self) -> str:
        """The name of the first model that the server lists."""
        with self._as_mistake("check the address and the server, or name a model with --served-model"):
            models = await self._client.models()
        if not models:
            raise UserMistake(f"{self._url}: it lists no models; name one with --served-model")
        return next(iter(models))

    async def complete(self, model: str, prompt: list[int], output_tokens: int, priority: int | None = None) -> Served:
        """One streamed completion of a prompt given as token ids."""
        fields: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if priority is not None:
            fields["priority"] = priority
        with self._as_mistake("is it healthy?"):
            served = await self._client.complete(json.dumps(fields).encode())
        if served.prompt_tokens < 1:
            raise UserMistake(f"{self._url}: its usage counts no prompt tokens; is it healthy?")
        return served

    @contextmanager
    def _as_mistake(self, fix: str) -> Iterator[None]:
        try:
            yield
        except StreamFault as fault:
            raise UserMistake(f"{self._url}: {fault}; {fix}") from None
