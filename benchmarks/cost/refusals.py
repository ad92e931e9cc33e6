"""What a refused request of 1 MB costs the gateway: CPU of its process, with and without the body read first.

    python -m benchmarks.cost.refusals
    python -m benchmarks.cost.refusals --before ../older/src --json FILE   # the gateway of another checkout beside it

A source that never answers, a queue that is full (`queue.max_requests = 1`), and clients that send a request of
`--bytes` after the other, each of which gets 429. The gateways take turns, so that what else the machine does falls on
all. CPU is the kernel's accounting of the gateway's process. Linux only. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cost.relay import cpu_seconds, free_port, running

BYTES = 1 << 20
REQUESTS = 200
REPEATS = 5
_CONFIG = """
listen = "127.0.0.1:{port}"
[queue]
max_requests = 1
[health]
lame_duck_seconds = 0.0
drain_seconds = 0.1
[[replica]]
url = "http://127.0.0.1:{upstream}"
max_requests = 1
metrics = false
"""


def request(size: int) -> bytes:
    """A completion whose body has `size` bytes."""
    frame = json.dumps({"model": "m", "prompt": "", "max_tokens": 16}).encode()
    body = frame.replace(b'""', b'"' + b"words " * ((size - len(frame)) // 6 + 1) + b'"')
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def silent_source() -> int:
    """A replica that lists a model and answers nothing else; its port."""
    server = socket.create_server(("127.0.0.1", 0))
    listed = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(listed) + listed

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 20):
                if data.startswith(b"GET"):
                    connection.sendall(answer)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(server.getsockname()[1])


@contextmanager
def gateway(source: Path, upstream: int, folder: Path) -> Iterator[tuple[int, int]]:
    """A full gateway of this source tree: its port and its process id."""
    port = free_port()
    config = folder / f"{port}.toml"
    config.write_text(_CONFIG.format(port=port, upstream=upstream), encoding="utf-8")
    command = [sys.executable, "-c", "from headway.cli import main; main()", "serve", "--config", str(config)]
    held: list[socket.socket] = []
    with running(command, port, os.environ | {"PYTHONPATH": str(source)}) as pid:
        try:
            for _ in range(2):  # one at the source, one in the queue
                one = socket.create_connection(("127.0.0.1", port))
                one.sendall(request(200))
                held.append(one)
                time.sleep(0.2)
            yield port, pid
        finally:
            for one in held:
                one.close()


def refused(port: int, sent: bytes, requests: int) -> None:
    """Send so many requests, one after the other, each to its end; every answer must be 429."""
    connection: socket.socket | None = None
    for _ in range(requests):
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(sent)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65_536) or sys.exit("the gateway closed without an answer")
        if not head.startswith(b"HTTP/1.1 429"):
            raise SystemExit(f"not refused: {head[:100]!r}")
        if b"connection: close" in head:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="`src` of another checkout")
    parser.add_argument("--bytes", type=int, default=BYTES)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sources = {"now": Path(__file__).resolve().parents[2] / "src"}
    if options.before is not None:
        sources["before"] = options.before.resolve()
    sent = request(options.bytes)
    found: dict[str, list[float]] = {name: [] for name in sources}
    with tempfile.TemporaryDirectory() as folder:
        upstream = silent_source()
        for _ in range(options.repeats):
            for name, source in sources.items():
                with gateway(source, upstream, Path(folder)) as (port, pid):
                    refused(port, sent, 20)
                    began = cpu_seconds(pid)
                    refused(port, sent, options.requests)
                    found[name].append((cpu_seconds(pid) - began) / options.requests * 1e3)
    for name, values in found.items():
        least, median = min(values), statistics.median(values)
        print(f"{name:>8}: {least:.2f} / {median:.2f} ms of CPU per refused request (least / median of {len(values)})")
    if options.json is not None:
        options.json.write_text(json.dumps({"bytes": options.bytes, "cpu_ms": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
