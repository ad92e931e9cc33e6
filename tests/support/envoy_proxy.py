"""The real Envoy, in front of the endpoint picker of a gateway under test."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from headway.gateway.epp.picker_listener import PickerListener, PickerSettings
from tests.support.gateway_setup import Answer, RawClient, Setup, completion, post
from tests.support.serve_process import HEADWAY, fetched

CONFIGS = Path(__file__).parents[2] / "docs" / "envoy"


def envoy_binary() -> str | None:
    """Where Envoy is; None where its package is not installed."""
    found = find_spec("envoy")
    for folder in found.submodule_search_locations or () if found is not None else ():
        binary = Path(folder) / "_bin" / "envoy"
        if binary.exists():
            return str(binary)
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Envoy:
    """A running Envoy."""

    port: int
    picker_port: int
    process: subprocess.Popen[bytes]

    def client(self) -> RawClient:
        return RawClient(self.port)

    async def ask(self, body: object = None, path: str = "/v1/completions", headers: str = "") -> Answer:
        async with self.client() as client:
            await client.send(post(completion() if body is None else body, path, headers))
            return await client.answer()

    async def until_it_asks(self) -> None:
        """Envoy may find the picker only at its next health check; a path that is none tells who answers."""
        async with asyncio.timeout(60):
            while not (await self.ask(path="/")).reason:
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def picker(self, setup: Setup, **more: object) -> AsyncIterator[PickerListener]:
        """The endpoint picker of a gateway, where this Envoy looks for it."""
        settings = PickerSettings(f"127.0.0.1:{self.picker_port}", **more)  # type: ignore[arg-type]
        listener = PickerListener(setup.gateway, settings)
        await listener.start()
        try:
            yield listener
        finally:
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            await listener.stop()


@contextmanager
def envoy_running(
    folder: Path, config: str = "envoy.yaml", changes: dict[str, str] | None = None, picker_port: int = 0
) -> Iterator[Envoy]:
    """Envoy with a configuration of docs/envoy, at other ports, and with these texts of it changed."""
    binary = envoy_binary()
    assert binary is not None
    text = (CONFIGS / config).read_text(encoding="utf-8")
    port, picker_port = free_port(), picker_port or free_port()
    wanted = {"port_value: 8080": f"port_value: {port}", "port_value: 9002": f"port_value: {picker_port}"}
    for before, after in (wanted | (changes or {})).items():
        assert before in text, before
        text = text.replace(before, after)
    file = folder / f"{port}.yaml"
    file.write_text(text, encoding="utf-8")
    line = [binary, "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(process, port)
        yield Envoy(port, picker_port, process)
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def envoy_beside(
    folder: Path, config: str, changes: dict[str, str], picker_port: int = 0
) -> AsyncIterator[Envoy]:
    """The same for a test whose replicas live in its own loop, which must go on meanwhile."""
    context = envoy_running(folder, config, changes, picker_port)
    running = await asyncio.to_thread(context.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@asynccontextmanager
async def picker_process(port: int, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`headway epp` as a process of its own, for Envoy to find at this port; ready when it is yielded."""
    line = [*HEADWAY, "epp", "--listen", "127.0.0.1:0", "--grpc-listen", f"127.0.0.1:{port}", *arguments]
    process = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        url = None
        while url is None:
            told = await process.stderr.readline()
            assert told, "it ended without listening"
            url = re.search(rb'"url": "(http[^"]+)"', told)
        async with asyncio.timeout(60):
            while json.loads(await asyncio.to_thread(fetched, url[1].decode() + "/ready"))["replicas_up"] < 1:
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None, "Envoy ended; run it with this configuration to see why"
        assert time.monotonic() < until, "Envoy does not listen"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
