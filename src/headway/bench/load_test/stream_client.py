"""A client that streams completions from an OpenAI-compatible server and notes when tokens came.

HTTP/1.1 and server-sent events, by the standard library alone: `headway calibrate URL` runs without the gateway's
packages. Connections are kept between requests while they are young; a request that finds its kept connection closed
is sent once more on a fresh one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from headway.bench.load_test.addresses import http_address
from headway.bench.load_test.completion_stream import (
    CompletionStream,
    StreamFault,
    error_message,
    is_refusal_status,
    json_or_text,
)
from headway.bench.user_mistake import UserMistake

_CONNECT_SECONDS = 10.0
KEPT_SECONDS = 4.0
"""A good `kept_seconds`: engines behind uvicorn close idle connections after 5 s."""
_HEAD_BYTES_MAX = 1 << 16
_REFUSAL_BYTES_MAX = 1 << 16

HeaderFields: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Served:
    """One completed answer; times on `time.perf_counter`'s clock, tokens as the server counted them."""

    sent_at: float
    first_token_at: float
    last_token_at: float
    prompt_tokens: int
    output_tokens: int


class StreamClient:
    """The connections to one server. `url` is its base address, with or without `/v1` at its end."""

    def __init__(
        self, url: str, *, kept_seconds: float, key: str | None = None, silence_seconds: float | None = None
    ) -> None:
        """A client.

        Args:
            url: the address.
            kept_seconds: how long an idle connection is kept for the next request; 0 opens one for each.
            key: the server's API key, if it wants one.
            silence_seconds: a request to which nothing comes for so long is given up; None for never.

        Raises:
            UserMistake: the address is none.
        """
        parts = http_address(url)
        if parts is None or parts.hostname is None:
            raise UserMistake(f"{url}: is no address of a server; write http://HOST:PORT")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._kept_seconds = kept_seconds
        self._silence_seconds = silence_seconds
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._headers = f"Host: {host}:{self._port}\r\nContent-Type: application/json\r\n"
        self._headers += f"Authorization: Bearer {key}\r\n" if key else ""
        self._headers += "" if kept_seconds else "Connection: close\r\n"
        self._idle: list[tuple[float, _Connection]] = []  # the latest freed last

    async def models(self) -> dict[str, str | None]:
        """The names of the models that the server lists, each with its owner.

        Raises:
            StreamFault: the server cannot be reached, or does not list its models.
        """
        parts: list[bytes] = []
        await self._ask(self._request("GET", "/models", b"", ()), parts.append)
        try:
            return {str(entry["id"]): entry.get("owned_by") for entry in json.loads(b"".join(parts))["data"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StreamFault("its /v1/models is no list of models") from None

    async def complete(
        self, body: bytes, *, headers: HeaderFields = (), on_tokens: Callable[[], None] = lambda: None
    ) -> Served:
        """Send one streamed completion and read its answer to the end.

        Args:
            body: the request, which asks for a stream with usage.
            headers: further ones.
            on_tokens: called as soon as a piece of the answer has come that holds tokens.

        Raises:
            StreamFault: there is no whole answer with tokens and usage.
        """
        sent_at = time.perf_counter()
        stream = CompletionStream(on_tokens)
        await self._ask(self._request("POST", "/completions", body, headers), stream.read)
        stream.close()
        if not stream.usage:
            raise StreamFault("the answer ended without a usage chunk")
        output_tokens = stream.usage.get("completion_tokens") or 0
        if not stream.first_token_at or output_tokens < 1:
            raise StreamFault("the answer holds no token, or its usage counts none")
        if not stream.has_ended:
            raise StreamFault("the answer stops without finish reason or [DONE]")
        prompt_tokens = stream.usage.get("prompt_tokens") or 0
        return Served(sent_at, stream.first_token_at, stream.last_token_at, prompt_tokens, output_tokens)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    def _request(self, method: str, path: str, body: bytes, headers: HeaderFields) -> bytes:
        further = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}{further}Content-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def _ask(self, request: bytes, on_part: Callable[[bytes], None]) -> None:
        """Send a request; `on_part` takes the pieces of the body of an answer with status 200."""
        connection = self._take()
        if connection is not None:
            try:
                await connection.ask(request, on_part, self._silence_seconds)
            except _NothingAnswered:
                connection = None
        if connection is None:
            connection = await self._open()
            await connection.ask(request, on_part, self._silence_seconds)
        if connection.is_reusable and self._kept_seconds:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()

    def _take(self) -> _Connection | None:
        """An idle connection, the one used last; None if a new one has to be opened."""
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() - since < self._kept_seconds and not connection.is_closed:
                return connection
            connection.close()
        return None

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            opened = loop.create_connection(_Connection, self._host, self._port, ssl=self._ssl)
            return (await asyncio.wait_for(opened, _CONNECT_SECONDS))[1]
        except (OSError, UnicodeError) as error:  # the latter of a host name that cannot be encoded
            raise StreamFault(f"it cannot be reached: {error or 'no answer in time'}") from None


class _NothingAnswered(StreamFault):
    """The connection ended before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection. `ask` ends when the answer is whole; then it may ask again if it `is_reusable`."""

    def __init__(self) -> None:
        self.is_closed = False
        self.is_reusable = False
        self._heard_at = 0.0
        self._whole: asyncio.Future[None] | None = None

    def close(self) -> None:
        """End it, whatever stands in it still."""
        self._transport.abort()

    async def ask(self, request: bytes, on_part: Callable[[bytes], None], silence_seconds: float | None = None) -> None:
        """Send a request and read its answer. `on_part` takes the pieces of a body of status 200 as they come.

        After `silence_seconds` in which nothing came it is given up.

        Raises:
            StreamFault: there is no whole answer, it has another status, or `on_part` raised one.
        """
        self.is_reusable = False
        self._on_part = on_part
        self._head = b""
        self._status = 0
        self._refusal = b""
        self._whole = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._answered(self._whole, silence_seconds)
        except BaseException:
            self.close()
            raise
        finally:
            self._whole = None
        if self._status != 200:
            self.close()
            reason = self._headers.get("x-headway-reason", "")
            message = error_message(json_or_text(self._refusal))
            is_refusal = is_refusal_status(self._status)
            raise StreamFault(f"status {self._status}: {message}", reason, is_refusal=is_refusal)

    async def _answered(self, whole: asyncio.Future[None], silence_seconds: float | None) -> None:
        """Wait for the whole answer. Raises StreamFault after a silence, and what the future raises."""
        if silence_seconds is None:
            return await whole
        self._heard_at = time.monotonic()
        while (left := self._heard_at + silence_seconds - time.monotonic()) > 0:
            done, _ = await asyncio.wait((whole,), timeout=left)
            if done:
                return whole.result()
        raise StreamFault(f"nothing came for {silence_seconds:g} s")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Read on in the answer."""
        self._heard_at = time.monotonic()
        if self._whole is None or self._whole.done():
            self.is_reusable = False
            self.close()  # no request is open, or its answer is over
            return
        try:
            if not self._status:
                data = self._read_head(data)
            if self._status and self._read_body(data):
                self._whole.set_result(None)
        except ValueError as error:
            self._fail(StreamFault(f"failed: its answer is not HTTP/1.1 ({error})"))
        except StreamFault as fault:
            self._fail(fault)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone; an answer without a length ends so."""
        self.is_closed = True
        self.is_reusable = False
        if self._whole is None or self._whole.done():
            return
        if not self._status and not self._head:
            self._fail(_NothingAnswered("failed: it closed the connection before its answer"))
        elif not self._status:
            self._fail(StreamFault(f"failed: it answered what is not HTTP: {self._head[:40]!r}"))
        elif exc is None and (self._left is None and self._chunks is None):
            self._whole.set_result(None)
        else:
            self._fail(StreamFault("failed: it closed the connection in the middle of its answer"))

    def _fail(self, fault: StreamFault) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(fault)

    def _read_head(self, data: bytes) -> bytes:
        """Take in what came of the head; once it is whole, what follows it."""
        self._head += data
        while not self._status:
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                if len(self._head) > _HEAD_BYTES_MAX:
                    raise ValueError("its head does not end")
                return b""
            self._head = rest
            line, *fields = head.decode("latin-1").split("\r\n")
            version, _, status = line.partition(" ")
            if not version.startswith("HTTP/1."):
                raise ValueError(line[:40])
            if not 100 <= int(status[:3]) < 200:  # "continue" and "early hints" come before the answer
                self._status = int(status[:3])
                pairs = (field.partition(":") for field in fields)
                self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._chunks = _Chunks() if "chunked" in self._headers.get("transfer-encoding", "") else None
        length = self._headers.get("content-length")
        self._left = int(length) if self._chunks is None and length is not None else None
        return self._head

    def _read_body(self, data: bytes) -> bool:
        """Hand on what came of the body; whether it is whole."""
        part, whole, exact = data, False, False
        if self._chunks is not None:
            part = self._chunks.fed(data)
            whole, exact = self._chunks.are_whole, self._chunks.rest == b"\r\n"
        elif self._left is not None:
            part = data[: self._left]
            self._left -= len(part)
            whole, exact = not self._left, len(part) == len(data)
        if part and self._status == 200:
            self._on_part(part)
        elif len(self._refusal) < _REFUSAL_BYTES_MAX:
            self._refusal += part
        self.is_reusable = whole and exact and self._headers.get("connection", "").lower() != "close"
        return whole


class _Chunks:
    """The body inside a chunked answer. `rest` is what follows its last chunk, once they `are_whole`."""

    def __init__(self) -> None:
        self.are_whole = False
        self.rest = b""
        self._left = 0  # bytes of the chunk that have not come, its line break included
        self._is_last = False

    def fed(self, data: bytes) -> bytes:
        """The body in the bytes that came. Raises ValueError if they are no chunks."""
        data, self.rest = self.rest + data, b""
        content, at = [], 0
        while at < len(data) and not self._is_last:
            if self._left:
                part = data[at : at + self._left]
                content.append(part[: max(0, self._left - 2)])
                self._left -= len(part)
                at += len(part)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            size = int(data[at:end].split(b";")[0], 16)
            at = end + 2
            self._is_last = not size
            self._left = size + 2
        self.rest = data[at:]
        self.are_whole = self._is_last and len(self.rest) >= 2
        return b"".join(content)
