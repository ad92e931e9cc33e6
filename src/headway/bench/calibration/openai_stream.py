"""A client that streams completions from an OpenAI-compatible server and notes when tokens came; stdlib only.

One connection a request, HTTP/1.1, server-sent events. Output lengths are pinned by vLLM's `ignore_eos`; where a server
does not know it, the usage that it reports at the end says how long the answer was.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headway.bench.load_test.addresses import http_address
from headway.bench.user_mistake import UserMistake

_LIMIT_BYTES = 1 << 22  # of one line of an answer
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """One completed answer; times on `time.perf_counter`'s clock, tokens as the server counted them."""

    sent_at: float
    first_token_at: float
    last_token_at: float
    prompt_tokens: int
    output_tokens: int


class Server:
    """An OpenAI-compatible server at a base address, with or without `/v1` at its end.

    Raises:
        UserMistake: the address is none, nobody answers there, or the answer is not what a completion server says.
    """

    def __init__(self, url: str) -> None:
        parts = http_address(url)
        if parts is None or parts.hostname is None:
            raise UserMistake(f"{url}: is no address of a server; write http://HOST:PORT")
        self._url = url
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"

    async def first_model(self) -> str:
        """The name of the first model that the server lists."""
        with self._understood():
            reader, writer = await self._ask("GET", "/models", None)
            try:
                body = b"".join([part async for part in _body(reader)])
                return str(json.loads(body)["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise UserMistake(f"{self._url}: does not list its models; name one with --served-model") from None
            finally:
                writer.close()

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
        sent_at = time.perf_counter()
        with self._understood():
            reader, writer = await self._ask("POST", "/completions", fields)
            try:
                first, last, usage = await self._streamed(reader)
            finally:
                writer.close()
            if not first or not usage:
                raise UserMistake(f"{self._url}: the answer ended without a token or without its usage; is it healthy?")
            tokens = [int(usage[name]) for name in ("prompt_tokens", "completion_tokens")]
            if min(tokens) < 1:
                raise UserMistake(f"{self._url}: its usage counts no tokens; is it healthy?")
        return Served(sent_at, first, last, *tokens)

    async def _streamed(self, reader: asyncio.StreamReader) -> tuple[float, float, dict[str, Any]]:
        """When the first and the last token came, and the usage; 0 and empty where they did not."""
        first = last = 0.0
        usage: dict[str, Any] = {}
        async for event in _events(reader):
            if "error" in event:
                raise UserMistake(f"{self._url}: answered with an error: {str(event['error'])[:200]}")
            if event.get("choices"):
                last = time.perf_counter()
                first = first or last
            usage = event.get("usage") or usage
        return first, last, usage

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Whatever else an answer turns out to be is told in one sentence."""
        try:
            yield
        except UserMistake:
            raise
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as fault:
            told = f"{type(fault).__name__}: {fault}"
            raise UserMistake(
                f"{self._url}: its answer broke off or is no completion ({told}); is it healthy?"
            ) from fault

    async def _ask(
        self, method: str, path: str, fields: dict[str, Any] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request; the reader stands at the body of an answer with status 200."""
        context = ssl.create_default_context() if self._tls else None
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(self._host, self._port, ssl=context, limit=_LIMIT_BYTES), _CONNECT_SECONDS
            )
        except (OSError, TimeoutError) as fault:
            raise UserMistake(f"{self._url}: nobody answers there ({fault}); is the server up?") from None
        body = b"" if fields is None else json.dumps(fields).encode()
        head = f"{method} {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        try:
            status = (await reader.readline()).split(b" ", 2)
            if len(status) < 2 or status[1] != b"200":
                said = b"".join([part async for part in _body(reader)]).decode(errors="replace")
                said = " ".join(said.split())
                raise UserMistake(f"{self._url}: answered {b' '.join(status[1:]).decode().strip()}: {said[:200]}")
        except BaseException:
            writer.close()
            raise
        return reader, writer


async def _body(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Parts of an answer's body, its headers read over; chunked or to the connection's end."""
    chunked = False
    while (line := (await reader.readline()).strip().lower()) != b"":
        chunked |= line.startswith(b"transfer-encoding:") and b"chunked" in line
    if not chunked:
        while part := await reader.read(1 << 16):
            yield part
        return
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readline()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, until `[DONE]`."""
    pending = b""
    async for part in _body(reader):
        pending += part
        *lines, pending = pending.split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.strip().startswith(b"data:"):
                continue
            if data == b"[DONE]":
                return
            yield json.loads(data)
