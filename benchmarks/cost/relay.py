"""What relaying one streamed token costs: CPU of the relay's process, added latency, idle time to first token.

    python -m benchmarks.cost.relay                      # headway, and an aiohttp proxy where aiohttp is installed
    python -m benchmarks.cost.relay --vllm-router PATH --envoy PATH --json FILE

One source of server-sent events, one load of closed-loop streams, the relay between them; relays take turns, so that
what else the machine does falls on all. CPU is the kernel's accounting of the relay's process (and its children).
Linux only. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import uvloop

STREAMS = 128
CHUNKS = 100
GAP_SECONDS = 0.02
SECONDS = 6.0
REPEATS = 3
IDLE_REQUESTS = 50

ENVOY = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %(port)d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: relay
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: up, timeout: 0s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: up
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment:
      cluster_name: up
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %(upstream)d}}}
"""

Command = Callable[[int, int, Path], list[str]]


# The source: streams that carry their send times


class Source(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.held = b""

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            head = self.held[:end].lower()
            length = next((int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0)
            if b"transfer-encoding: chunked" in head:
                last = self.held.find(b"\r\n0\r\n\r\n", end)
                if last < 0:
                    return
                raw, self.held = self.held[end + 4 : last + 2], self.held[last + 7 :]
                body = b"".join(raw.split(b"\r\n")[1::2])
            elif len(self.held) < end + 4 + length:
                return
            else:
                body, self.held = self.held[end + 4 : end + 4 + length], self.held[end + 4 + length :]
            self.answer(body)

    def answer(self, body: bytes) -> None:
        if not body:
            self.write(b'{"object":"list","data":[{"id":"m","object":"model"}],"status":"ok"}')
            return
        asked = json.loads(body)
        asyncio.ensure_future(self.stream(asked["max_tokens"], asked["gap"]))  # noqa: RUF006

    def write(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)  # type: ignore[attr-defined]

    async def stream(self, chunks: int, gap: float) -> None:
        write = self.transport.write  # type: ignore[attr-defined]
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(chunks):
            event = (
                b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"m",'
                b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}],"t":%d}\n\n'
            ) % time.monotonic_ns()
            write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(gap)
            if self.transport.is_closing():
                return
        write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


# The load


class Load(asyncio.Protocol):
    """One client: a stream after the other until `until`."""

    def __init__(self, chunks: int, until: float, requests: int | None, found: Found, gap: float) -> None:
        self.body = json.dumps(
            {"model": "m", "prompt": "hello " * 20, "max_tokens": chunks, "stream": True, "gap": gap}
        ).encode()
        self.until, self.requests, self.found = until, requests, found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.go()

    def go(self) -> None:
        self.tail = b""
        self.began = time.monotonic_ns()
        self.is_first = True
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % len(self.body) + self.body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now, found = time.monotonic_ns(), self.found
        if self.is_first and b'"t":' in data:
            self.is_first = False
            found.ttft.append((now - self.began) / 1e6)
        count = data.count(b'"t":')
        found.chunks += count
        if count == 1:
            at = data.find(b'"t":') + 4
            found.lag.append((now - int(data[at : data.find(b"}", at)])) / 1e6)
        self.tail = (self.tail + data)[-40:]
        if self.tail.endswith(b"0\r\n\r\n") and b"[DONE]" in self.tail:
            found.requests += 1
            if self.requests is not None:
                self.requests -= 1
            if time.monotonic() < self.until and self.requests != 0:
                self.go()
            else:
                found.open -= 1
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.tail.endswith(b"0\r\n\r\n"):
            self.found.errors += 1
            self.found.open -= 1


class Found:
    def __init__(self) -> None:
        self.ttft: list[float] = []
        self.lag: list[float] = []
        self.chunks = self.requests = self.errors = self.open = 0


async def load(
    port: int, streams: int, chunks: int, seconds: float, requests: int | None = None, gap: float = GAP_SECONDS
) -> Found:
    found = Found()
    loop = asyncio.get_running_loop()
    until = time.monotonic() + seconds
    for _ in range(streams):
        found.open += 1
        await loop.create_connection(lambda: Load(chunks, until, requests, found, gap), "127.0.0.1", port)
    limit = time.monotonic() + seconds + 2 * chunks * gap + 10
    while found.open and time.monotonic() < limit:
        await asyncio.sleep(0.01)
    found.errors += found.open
    return found


# The relays


def headway(port: int, upstream: int, folder: Path) -> list[str]:
    config = folder / "headway.toml"
    config.write_text(
        f'listen = "127.0.0.1:{port}"\n[[replica]]\nurl = "http://127.0.0.1:{upstream}"\nmax_requests = 100000\n'
        "[queue]\nmax_requests = 100000\n"
    )
    return [sys.executable, "-c", "from headway.cli import main; main()", "serve", "--config", str(config)]


def aiohttp_proxy(port: int, upstream: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.cost.relay", "--aiohttp", str(port), str(upstream)]


def vllm_router(path: str) -> Command:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        url = f"http://127.0.0.1:{upstream}"
        options = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", url, "--policy", "round_robin"]
        return [path, *options, "--prometheus-port", str(free_port())]

    return command


def envoy(path: str) -> Command:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        config = folder / "envoy.yaml"
        config.write_text(ENVOY % {"port": port, "upstream": upstream})
        return [path, "-c", str(config), "--concurrency", "1", "-l", "error"]

    return command


def serve_aiohttp(port: int, upstream: int) -> None:
    from aiohttp import ClientSession, TCPConnector, web

    async def relay(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        url = f"http://127.0.0.1:{upstream}{request.path}"
        async with request.app["session"].request(request.method, url, data=body) as answer:
            kind = {"content-type": answer.headers.get("content-type", "")}
            response = web.StreamResponse(status=answer.status, headers=kind)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def make() -> web.Application:
        app = web.Application()
        app["session"] = ClientSession(connector=TCPConnector(limit=0))
        app.router.add_route("*", "/{path:.*}", relay)
        return app

    uvloop.install()
    web.run_app(make(), host="127.0.0.1", port=port, access_log=None, print=None)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not is_ready(port):
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{command[0]} did not start to listen on {port}")
            time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as one:
            one.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return b'"m"' in one.recv(65_536)
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in [str(pid), *children]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def once(port: int, pid: int | None, streams: int, seconds: float) -> dict[str, float]:
    run = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with run as runner:
        idle = runner.run(load(port, 1, 1, 60.0, IDLE_REQUESTS))
        before, began = cpu_seconds(pid) if pid else 0.0, time.monotonic()
        busy = runner.run(load(port, streams, CHUNKS, seconds))
        spent = (cpu_seconds(pid) if pid else 0.0) - before
        tiny_before = cpu_seconds(pid) if pid else 0.0
        tiny = runner.run(load(port, 16, 1, 2.0))
        tiny_spent = (cpu_seconds(pid) if pid else 0.0) - tiny_before
    per_chunk = 1e6 * spent / max(1, busy.chunks)
    return {
        "cpu_us_per_chunk": per_chunk,
        "cpu_us_per_request": 1e6 * tiny_spent / max(1, tiny.requests) - per_chunk,
        "chunk_ms_p50": quantile(busy.lag, 0.5),
        "chunk_ms_p99": quantile(busy.lag, 0.99),
        "idle_ttft_ms_p50": quantile(idle.ttft, 0.5),
        "chunks_per_second": busy.chunks / (time.monotonic() - began),
        "errors": busy.errors + idle.errors + tiny.errors,
        "rss_mib": rss_mib(pid) if pid else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-router", metavar="PATH")
    parser.add_argument("--envoy", metavar="PATH")
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", help="one relay by name")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--source", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--aiohttp", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.source:
        uvloop.run(serve_source(asked.source))
    elif asked.aiohttp:
        serve_aiohttp(*asked.aiohttp)
    else:
        measure(asked)


async def serve_source(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Source, "127.0.0.1", port, backlog=8_192)
    await server.serve_forever()


def measure(asked: argparse.Namespace) -> None:
    relays: dict[str, Command | None] = {"none": None, "headway": headway}
    if find_spec("aiohttp"):
        relays["aiohttp"] = aiohttp_proxy
    if asked.vllm_router:
        relays["vllm-router"] = vllm_router(asked.vllm_router)
    if asked.envoy:
        relays["envoy"] = envoy(asked.envoy)
    if asked.only:
        relays = {asked.only: relays[asked.only]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in relays}
    upstream = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        running([sys.executable, "-m", "benchmarks.cost.relay", "--source", str(upstream)], upstream),
    ):
        for repeat in range(asked.repeats):
            for name, command in relays.items():
                if command is None:
                    found[name].append(once(upstream, None, asked.streams, asked.seconds))
                    continue
                port = free_port()
                with running(command(port, upstream, Path(folder)), port) as pid:
                    found[name].append(once(port, pid, asked.streams, asked.seconds))
            print(f"repeat {repeat + 1} of {asked.repeats} done", file=sys.stderr)
    show(found)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n")


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Least, median and most of the repeats."""
    keys = list(next(iter(found.values()))[0])
    print("| relay | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
    for name, runs in found.items():
        cells = []
        for key in keys:
            values = sorted(run[key] for run in runs)
            cells.append(" / ".join(f"{v:.3g}" for v in (values[0], statistics.median(values), values[-1])))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
