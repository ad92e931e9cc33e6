"""The real Envoy, in front of the endpoint picker of a gateway under test."""

from __future__ import annotations

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
def envoy_running(folder: Path, config: str = "envoy.yaml", changes: dict[str, str] | None = None) -> Iterator[Envoy]:
    """Envoy with a configuration of docs/envoy, at other ports, and with these texts of it changed."""
    binary = envoy_binary()
    assert binary is not None
    text = (CONFIGS / config).read_text(encoding="utf-8")
    port, picker_port = free_port(), free_port()
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
