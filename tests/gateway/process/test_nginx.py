"""deploy/nginx/headway.conf with a real nginx: TLS, streams that pass at once, a gateway that stands by."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.gateway_setup import RunGateway, Setup, completion, post
from tests.support.scripted_replica import answers, streams, text, waits_for

CONFIG = Path(__file__).parents[3] / "deploy" / "nginx" / "headway.conf"
NGINX = os.environ.get("HEADWAY_NGINX") or shutil.which("nginx")
pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (HEADWAY_NGINX names another place)"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]
AROUND = """\
daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{server}
}}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def nginx(folder: Path, *gateways: int, changes: tuple[str, str] = ("", "")) -> AsyncIterator[int]:
    """Runs with the file as it is, but for addresses and the certificate; yields its port."""
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    line += ["-subj", "/CN=llm.example.com", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(line, check=True, capture_output=True)
    port, server = free_port(), CONFIG.read_text("utf-8")
    servers = "".join(f"server 127.0.0.1:{gateway} max_fails=0;\n" for gateway in gateways)
    for old, new in (
        ("server 127.0.0.1:8000 max_fails=0;", servers),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/tls/llm.example.com.pem", f"{folder}/cert.pem"),
        ("/etc/nginx/tls/llm.example.com.key", f"{folder}/key.pem"),
        changes,
    ):
        assert old in server
        server = server.replace(old, new, 1)
    file = folder / "nginx.conf"
    file.write_text(AROUND.format(folder=folder, server=server), encoding="utf-8")
    assert NGINX is not None
    process = await asyncio.create_subprocess_exec(NGINX, "-p", folder, "-c", file, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    assert process.returncode is None, await process.communicate()
                    await asyncio.sleep(0.02)
        yield port
    finally:
        process.kill()
        await process.communicate()


async def send(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    writer.write(data.replace(b"host: x\r\n", b"host: llm.example.com\r\nconnection: close\r\n"))
    return reader, writer


async def ask(port: int, data: bytes) -> tuple[int, bytes]:
    reader, writer = await send(port, data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


def test_each_event_of_a_stream_passes_at_once_because_the_gateway_says_so(
    run_gateway: RunGateway, tmp_path: Path
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def first_then_waits(call) -> None:  # type: ignore[no-untyped-def]
            await call.head()
            await call.event(text("first "))
            await gate.wait()
            await call.event(text("last "))
            await call.chunk(b"data: [DONE]\n\n")
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].usual = first_then_waits
        async with nginx(tmp_path, setup.port) as port:
            reader, writer = await send(port, post(completion()))
            early = await asyncio.wait_for(reader.readuntil(b"first "), 30)
            assert b"200 OK" in early
            gate.set()
            assert b"last " in await asyncio.wait_for(reader.read(), 30)
            writer.close()
        gate.clear()
        ignoring = ("proxy_http_version 1.1;", "proxy_http_version 1.1; proxy_ignore_headers X-Accel-Buffering;")
        async with nginx(tmp_path, setup.port, changes=ignoring) as port:
            reader, writer = await send(port, post(completion()))
            with pytest.raises(TimeoutError):  # nginx keeps events until it has a buffer full
                await asyncio.wait_for(reader.readuntil(b"first "), 0.5)
            gate.set()
            writer.close()
            await setup.until(lambda: not setup.dispatcher.counts.inside)

    run_gateway(scenario, hosts=("llm.example.com",))


def test_the_api_alone_is_there_and_large_bodies_pass(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        async with nginx(tmp_path, setup.port) as port:
            status, _ = await ask(port, post(completion(stream=False, prompt="x" * 3_000_000)))
            assert status == 200
            assert setup.replicas[0].calls[-1].headers["content-length"] > "3000000"
            for path, wanted in (("/v1/models", 200), ("/ready", 200), ("/metrics", 404), ("/headway/", 404)):
                status, _ = await ask(port, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                assert (path, status) == (path, wanted)

    run_gateway(scenario, hosts=("llm.example.com",))


def test_a_gateway_that_stands_by_passes_its_requests_on(run_gateway: RunGateway, tmp_path: Path) -> None:
    refusals = 0

    async def stands_by(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refusals
        with_body = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", with_body.lower())
        await reader.readexactly(int(length[1]) if length else 0)
        refusals += 1
        writer.write(b"HTTP/1.1 503 X\r\nx-headway-reason: standby\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(2)
        other = await asyncio.start_server(stands_by, "127.0.0.1", 0)
        gone = free_port()
        async with other, nginx(tmp_path, other.sockets[0].getsockname()[1], setup.port) as port:
            found = [await ask(port, post(completion())) for _ in range(6)]
            assert [status for status, _ in found] == [200] * 6
            assert refusals >= 2
        async with nginx(tmp_path, gone, setup.port) as port:
            found = [await ask(port, post(completion())) for _ in range(6)]
            assert [status for status, _ in found] == [200] * 6, "one that does not listen, too"

    run_gateway(scenario, hosts=("llm.example.com",))


def test_a_client_that_leaves_is_noticed_behind_nginx(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = waits_for(asyncio.Event(), streams())
        async with nginx(tmp_path, setup.port) as port:
            _, writer = await send(port, post(completion()))
            await setup.until(lambda: setup.replicas[0].inside)
            writer.close()
            await setup.until(lambda: setup.dispatcher.counts.ended["cancelled"] == 1)

    run_gateway(scenario, hosts=("llm.example.com",))
