"""Requests refused by their head: before their body, for the reason it would be with it, and so that clients see it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from headway.gateway.settings import QueueSettings, TenantSettings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post

FULL = QueueSettings(max_requests=1)
LARGE_BYTES = 8 << 20


def large(size: int = LARGE_BYTES) -> dict[str, object]:
    return completion(prompt="x" * size)


async def ask(port: int, tls: ssl.SSLContext | None) -> bytes:
    """The answer to a small request, its head and all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        writer.write(post(completion()))
        return await reader.read()
    finally:
        writer.transport.abort()


async def fill(setup: Setup, tls: ssl.SSLContext | None = None) -> list[asyncio.Task[bytes]]:
    """One request runs and one waits: the queue is full."""
    setup.replicas[0].usual = lambda call: call.left.wait()  # type: ignore[method-assign, return-value]
    tasks = []
    for number in range(2):
        tasks.append(asyncio.create_task(ask(setup.port, tls)))
        await setup.until(lambda number=number: setup.dispatcher.counts.inside == number + 1)
    await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 1)
    return tasks


async def empty(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_full_queue_refuses_before_the_body_and_counts_it_as_any_other(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        tasks = await fill(setup)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 8000000\r\n"
        for expects in (b"", b"expect: 100-continue\r\n"):  # no byte of the body is sent
            async with RawClient(setup.port) as client:
                await client.send(head + expects + b"\r\n")
                answer = await client.answer()
            assert (answer.status, answer.reason) == (429, "queue-full")
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["connection"] == "close"
            assert float(answer.headers["retry-after-ms"]) > 0
        late = await setup.ask(completion(), path="/v1/chat/completions")
        assert (late.status, late.reason) == (429, "queue-full")
        counts = setup.dispatcher.counts
        assert (counts.arrived, counts.reasons) == (5, {"queue-full": 3})
        page = (await setup.get("/metrics")).body.decode()
        assert 'fairness_id="",outcome="refused",reason="queue-full"} 3' in page
        why = json.loads((await setup.get("/headway/why?id=mine")).body)
        assert why["reason"] == "queue-full"
        await empty(tasks)

    run_gateway(scenario, seats=1, queue=FULL)


def test_a_short_body_is_forgotten_and_its_connection_goes_on(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        tasks = await fill(setup)
        async with RawClient(setup.port) as client:
            for _ in range(2):  # together with a request that is pipelined behind it
                await client.send(post(large(30_000)) + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                answer = await client.answer()
                assert (answer.status, answer.reason) == (429, "queue-full")
                assert "connection" not in answer.headers
                assert (await client.answer()).json() == {"status": "ok"}
            await empty(tasks)
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            setup.replicas[0].usual = type(setup.replicas[0])().usual  # type: ignore[method-assign]
            await client.send(post(completion()))
            assert (await client.answer()).status == 200

    run_gateway(scenario, seats=1, queue=FULL)


def test_bounds_of_a_key_and_of_bytes_are_judged_by_the_head(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "AB":
        monkeypatch.setenv(f"KEY_{name}", f"secret-of-{name}")
    tenants = tuple(TenantSettings(name=name, key_env=f"KEY_{name}") for name in "AB")

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = lambda call: call.left.wait()  # type: ignore[method-assign, return-value]
        key_a, key_b = (f"authorization: Bearer secret-of-{name}\r\n" for name in "AB")

        async def by_head(key: str, size: int) -> tuple[int, str]:
            async with RawClient(setup.port) as client:
                head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{key}content-length: {size}\r\n\r\n"
                await client.send(head.encode())
                answer = await client.answer()
                return answer.status, answer.reason

        assert await by_head(key_b, 5_000_000) == (503, "overloaded")  # more than may be held
        tasks = [asyncio.create_task(setup.ask(headers=key_a)) for _ in range(2)]
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 1)
        assert await by_head(key_a, 100_000) == (429, "tenant-queue-full")
        assert await by_head(key_b, 2_000_000) == (429, "queue-full")  # more bytes than may wait
        async with RawClient(setup.port) as client:  # nothing but its body is missing
            await client.send(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{key_b}content-length: 9\r\n\r\n".encode())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.answer(), 0.1)
        await empty(tasks)

    bounds = QueueSettings(tenant_max_requests=1, max_bytes=1_000_000)
    run_gateway(scenario, seats=1, queue=bounds, tenant=tenants, wire=WireLimits(bodies_bytes=4_000_000))


def test_a_client_that_sends_on_slowly_gets_to_the_answer(run_gateway: RunGateway) -> None:
    """It is read past as long as it sends, and no longer than any body may take."""

    async def scenario(setup: Setup) -> None:
        tasks = await fill(setup)
        clock = setup.stop_the_clock()
        async with RawClient(setup.port) as slow, RawClient(setup.port) as endless:
            for client in (slow, endless):
                await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n")
            await setup.until(lambda: sum(client._closing for client in setup.clients) == 2)
            refused = [client for client in setup.clients if client._closing]
            for _ in range(5):
                clock.now += 1.5  # in all more than the gateway lingers over silence
                for client in (slow, endless):
                    await client.send(b"x" * 1_000)
                await setup.until(lambda: all((one._deadline or 0) >= clock.now + 1 for one in refused))
                await asyncio.sleep(0.3)  # a sweep
            assert len(setup.clients & set(refused)) == 2
            assert (await slow.answer()).reason == "queue-full"
            clock.now += 3.0
            await setup.until(lambda: not setup.clients & set(refused))
        await empty(tasks)

    run_gateway(scenario, seats=1, queue=FULL, wire=WireLimits(linger_seconds=2.0, body_seconds=20.0))


def certificate(folder: Path) -> dict[str, str]:
    """A new key and its certificate, as the settings name them."""
    key, chain = str(folder / "key.pem"), str(folder / "certificate.pem")
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*line, "-keyout", key, "-out", chain], check=True, capture_output=True)
    return {"tls_certificate": chain, "tls_key": key}


def writes_first(port: int, tls: ssl.SSLContext | None) -> str:
    """As requests and urllib3 do: a reset while the body is sent is an error, whatever there is to read."""
    body = b"x" * LARGE_BYTES
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        if tls is not None:
            client = stack.enter_context(tls.wrap_socket(client))
        client.sendall(head + body)
        return stack.enter_context(client.makefile("rb")).readline().split()[1].decode()


def openai_client(url: str) -> str:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        try:
            client.completions.create(model="m", prompt="x" * LARGE_BYTES)
        except openai.APIStatusError as error:
            return str(error.status_code)
    return "answered"


async def curl(url: str, *options: str) -> str:
    command = ["curl", "-sSk", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@-", *options]
    process = await asyncio.create_subprocess_exec(*command, f"{url}/completions", stdin=PIPE, stdout=PIPE)
    return (await process.communicate(b"x" * LARGE_BYTES))[0].decode()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_real_clients_see_the_refusal_of_a_large_request(run_gateway: RunGateway, tmp_path: Path, scheme: str) -> None:
    if scheme == "https" and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    tls = ssl.create_default_context() if scheme == "https" else None
    if tls is not None:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE

    async def scenario(setup: Setup) -> None:
        tasks = await fill(setup, tls)
        url = f"{scheme}://127.0.0.1:{setup.port}/v1"
        assert await asyncio.to_thread(writes_first, setup.port, tls) == "429"
        if scheme == "http":
            assert await asyncio.to_thread(openai_client, url) == "429"
        if shutil.which("curl"):
            assert await curl(url) == "429"  # it expects 100 Continue
            assert await curl(url, "-H", "expect:") == "429"
        await empty(tasks)

    run_gateway(scenario, seats=1, queue=FULL, **({} if tls is None else certificate(tmp_path)))
