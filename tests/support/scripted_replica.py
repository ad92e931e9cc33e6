"""A replica that does as it is told: streams, hangs, dies, lies. Real sockets on the loopback."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from headway.gateway.replicas.engine_figures import METRICS_PATHS

Script = Callable[["Call"], Awaitable[None]]

TOKENS = 8  # of an echo


class Call:
    """One request as the replica received it."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter):
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.writer = writer
        self.left = asyncio.Event()

    def json(self) -> dict[str, object]:
        return dict(json.loads(self.body))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, kind: str = "text/event-stream", extra: str = "") -> None:
        await self.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{extra}transfer-encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, content: object) -> None:
        await self.chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    async def whole(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)


def is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def text(token: str) -> dict[str, object]:
    return {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": token, "finish_reason": None}]}


def usage(prompt: int, output: int) -> dict[str, object]:
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
    }


def streams(tokens: int = 3, *, gap: float = 0.0, started: asyncio.Event | None = None) -> Script:
    async def script(call: Call) -> None:
        await call.head()
        for number in range(tokens):
            await call.event(text(f"t{number} "))
            if started is not None:
                started.set()
            await asyncio.sleep(gap)
        options = call.json().get("stream_options") or {}
        if isinstance(options, dict) and options.get("include_usage"):
            await call.event(usage(7, tokens))
        await call.chunk(b"data: [DONE]\n\n")
        await call.send(b"0\r\n\r\n")

    return script


class Flood:
    """So many chunks of 100,000 bytes as fast as they are taken; `sent` tells how many were."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.sent = 0

    async def __call__(self, call: Call) -> None:
        await call.head()
        for _ in range(self.chunks):
            await call.chunk(b"data: " + b"x" * 100_000 + b"\n\n")
            self.sent += 1
        await call.chunk(b"data: [DONE]\n\n")
        await call.send(b"0\r\n\r\n")


def echoes(tokens: int = TOKENS, gap: float = 0.0, gate: asyncio.Event | None = None) -> Script:
    """Streams tokens that name the prompt and their number; after the first one it waits for `gate`."""

    async def script(call: Call) -> None:
        mark = call.json()["prompt"]
        await call.head()
        for number in range(tokens):
            await call.event(text(f"{mark}.{number} "))
            if gate is not None:
                await gate.wait()
            await asyncio.sleep(gap)
        await call.event(usage(7, tokens))
        await call.chunk(b"data: [DONE]\n\n")
        await call.send(b"0\r\n\r\n")

    return script


def answers(status: int = 200, content: object = None) -> Script:
    async def script(call: Call) -> None:
        await call.whole(status, content if content is not None else {"choices": [], **usage(5, 2)})

    return script


def waits_for(event: asyncio.Event, then: Script) -> Script:
    async def script(call: Call) -> None:
        await event.wait()
        await then(call)

    return script


async def hangs(call: Call) -> None:
    await call.left.wait()


async def dies_at_once(call: Call) -> None:
    call.writer.transport.abort()


async def dies_mid_stream(call: Call) -> None:
    await call.head()
    await call.event(text("t0 "))
    await asyncio.sleep(0.02)
    call.writer.transport.abort()


async def breaks_framing(call: Call) -> None:
    await call.head()
    await call.event(text("t0 "))
    await asyncio.sleep(0.05)  # parted from what came before it, which its client has by then
    await call.send(b"zz\r\nnot a chunk\r\n")
    await asyncio.sleep(0.02)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks, as Envoy sends one that its endpoint picker has held."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


class ScriptedReplica:
    """Serves /v1/models, /health and /metrics by itself; everything else by the next script, or the usual one."""

    def __init__(self, usual: Script | None = None, models: tuple[str, ...] = ("m",)) -> None:
        self.usual = usual or streams()
        self.next: deque[Script] = deque()
        self.models = models
        self.metrics = ""
        self.metrics_path = METRICS_PATHS[0]
        self.instead: dict[str, Script] = {}  # path -> how it answers there, for /v1/models, /health and /metrics too
        self.calls: list[Call] = []
        self.is_alive = True
        self.inside = 0
        self.most_inside = 0
        self.scrapes = 0
        self.connections = 0  # that carried a request to a script
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.host = "127.0.0.1"
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> ScriptedReplica:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self.cut()
        await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._one(reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        is_chunked = headers.get("transfer-encoding") == "chunked"
        body = await (_chunks(reader) if is_chunked else reader.readexactly(int(headers.get("content-length", 0))))
        call = Call(method, path, headers, body, writer)
        self.scrapes += path == "/metrics"
        if path in self.instead:
            await self._carry_out(self.instead[path], call, reader)
        elif path == "/v1/models":
            await call.whole(200, {"data": [{"id": model, "object": "model"} for model in self.models]})
        elif path == "/health":
            await call.whole(200, {})
        elif path in METRICS_PATHS:
            if self.metrics and path == self.metrics_path:
                await self._tell(call)
            else:
                await call.whole(404, {})
        elif not is_utf8(body):  # refused as engines refuse it
            await call.whole(400, {"error": {"message": "the body is not UTF-8", "type": "BadRequestError"}})
        else:
            await self._run(call, reader)

    async def _tell(self, call: Call) -> None:
        body = self.metrics.encode()
        await call.send(b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def _run(self, call: Call, reader: asyncio.StreamReader) -> None:
        self.connections += all(call.writer is not other.writer for other in self.calls)
        self.calls.append(call)
        script = self.next.popleft() if self.next else self.usual

        async def counted(call: Call) -> None:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            try:
                await script(call)
            finally:
                self.inside -= 1

        await self._carry_out(counted, call, reader)

    async def _carry_out(self, script: Script, call: Call, reader: asyncio.StreamReader) -> None:
        """Run the script until it ends, or until the caller hangs up."""
        task = asyncio.ensure_future(script(call))
        watch = asyncio.ensure_future(reader.read(1))
        try:
            done, _ = await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch in done and task not in done:
                call.left.set()
                await asyncio.sleep(0)
                task.cancel()
                raise ConnectionResetError
            task.result()
        finally:
            for one in (task, watch):
                one.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)
