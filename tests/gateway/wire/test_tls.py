"""TLS at the front: the same answers, and connections that end properly."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_answers_and_refusals_come_through_tls(run_gateway: RunGateway, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*line, *names], check=True, capture_output=True)

    async def scenario(setup: Setup) -> None:
        assert setup.gateway.urls == [f"https://127.0.0.1:{setup.port}"]
        trusts = ssl.create_default_context(cafile=str(certificate))
        client = RawClient(setup.port)
        for data, status in ((post(completion()), 200), (b"nonsense\r\n\r\n", 400)):
            client.reader, client.writer = await asyncio.open_connection("127.0.0.1", setup.port, ssl=trusts)
            await client.send(data)
            assert (await client.answer()).status == status
            client.writer.close()
            await client.writer.wait_closed()

    run_gateway(scenario, tls_certificate=str(certificate), tls_key=str(key))


def speaks_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not speaks_ipv6(), reason="this machine has no ::1")
def test_the_address_that_is_told_can_be_opened(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        public, admin = setup.gateway.addresses
        assert setup.gateway.urls == [f"http://[::1]:{public[1]}", f"http://127.0.0.1:{admin[1]}"]

    run_gateway(scenario, listen="[::1]:0", admin_listen="127.0.0.1:0")
