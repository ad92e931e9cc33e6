"""Web pages of other origins: a preflight needs no key, the request behind it does, and every answer can be read."""

from __future__ import annotations

import pytest

from headway.gateway.budgets.rate_limit_headers import EVERY_NAME
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers

ORIGIN = "origin: https://page.example\r\n"
ASKS = "access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n"
KEY = "authorization: Bearer secret-of-a\r\n"
TENANTS = (TenantSettings(name="a", key_env="KEY_A"),)


async def preflight(setup: Setup, headers: str = ORIGIN + ASKS) -> tuple[int, dict[str, str]]:
    async with RawClient(setup.port) as client:
        await client.send(f"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
        return await client.head()


def test_with_keys_any_page_may_ask_and_its_request_needs_a_key(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        async def with_its_own(call: Call) -> None:
            await call.head(extra="access-control-allow-origin: *\r\n")
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].usual = with_its_own
        status, headers = await preflight(setup)
        assert status == 200
        assert headers["access-control-allow-origin"] == "https://page.example"
        assert headers["access-control-allow-headers"] == "authorization"
        assert setup.replicas[0].calls == []
        async with RawClient(setup.port) as client:
            await client.send(f"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\n{ORIGIN}\r\n".encode())
            assert (await client.head())[0] == 401  # no preflight
        for key, expected in (("", 401), (KEY, 200)):
            answer = await setup.ask(completion(), headers=ORIGIN + key)
            assert answer.status == expected
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-origin" not in (await setup.ask(completion())).headers

    run_gateway(scenario, tenant=TENANTS)


def test_only_listed_origins_may_where_they_are_listed(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        assert (await preflight(setup))[0] == 403
        assert (await preflight(setup, ORIGIN.replace("page", "chat") + ASKS))[0] == 200

    run_gateway(scenario, tenant=TENANTS, cors_origins=("https://chat.example",))


def test_without_keys_and_without_a_list_no_page_may(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        status, headers = await preflight(setup)
        assert status == 403
        assert "access-control-allow-origin" not in headers
        assert setup.replicas[0].calls == []
        async with RawClient(setup.port) as client:
            await client.send(f"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\n{ORIGIN}\r\n".encode())
            assert (await client.head())[0] == 200  # no preflight, so the engine's
        assert [call.method for call in setup.replicas[0].calls] == ["OPTIONS"]

    run_gateway(scenario)


OPEN = "access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\ntiming-allow-origin: *\r\n"
LISTED, UNLISTED = "https://page.example", "https://other.example"


async def opens_to_all(call: Call) -> None:
    """An engine that lets every page read its answers, by interim answers too."""
    await call.send(f"HTTP/1.1 103 Early Hints\r\n{OPEN}\r\n".encode())
    body = b'{"choices":[]}'
    head = f"HTTP/1.1 200 OK\r\nAccess-Control-Expose-Headers: *\r\n{OPEN}x-own: 1\r\nvary: Accept-Encoding, Origin"
    await call.send(f"{head}\r\nvary: origin\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


@pytest.mark.parametrize(
    ("origins", "origin", "allowed", "varies"),
    [
        ((), LISTED, None, ["Accept-Encoding, Origin", "origin"]),
        (("*",), LISTED, None, ["Accept-Encoding, Origin", "origin"]),
        ((LISTED,), LISTED, LISTED, ["Accept-Encoding", "origin"]),
        ((LISTED,), UNLISTED, None, ["Accept-Encoding", "origin"]),
        ((LISTED,), None, None, ["Accept-Encoding", "origin"]),
    ],
)
def test_an_engine_has_no_say_in_which_pages_may_read_its_answers(
    run_gateway: RunGateway, origins: tuple[str, ...], origin: str | None, allowed: str | None, varies: list[str]
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = opens_to_all
        async with RawClient(setup.port) as client:
            headers = f"origin: {origin}\r\n" if origin is not None else ""
            await client.send(post(completion(stream=False), headers=headers))
            lines = (await client.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        assert lines[0] == "HTTP/1.1 200 OK"
        told = [line.split(": ", 1) for line in lines[1:] if line]
        assert ["x-own", "1"] in told
        assert not any(name == "timing-allow-origin" for name, _ in told)
        assert [value for name, value in told if name == "vary"] == varies
        ours = {name: value for name, value in told if name.startswith("access-control-")}
        assert ours.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in ours
        assert ours.get("access-control-expose-headers") != "*"
        assert bool(ours) is (allowed is not None)

    run_gateway(scenario, cors_origins=origins)


def test_caches_hear_that_answers_differ_by_page_only_where_some_page_may(run_gateway: RunGateway) -> None:
    async def listed(setup: Setup) -> None:
        assert (await setup.get("/v1/models")).headers["vary"] == "origin"
        assert (await setup.get("/v1/models", ORIGIN)).headers["vary"] == "origin"
        assert "vary" not in (await setup.get("/health")).headers

    async def unlisted(setup: Setup) -> None:
        assert "vary" not in (await setup.get("/v1/models", ORIGIN)).headers

    run_gateway(listed, cors_origins=(LISTED,))
    run_gateway(unlisted)


LIMITS = WireLimits(head_bytes=2_000, headers=20, body_bytes=5_000, bodies_bytes=4_000, key_connections=1)
TOO_MUCH = {
    "a body that is announced": (f"content-length: 9000\r\n{ORIGIN}\r\n", 413),
    "a body that comes": (f"transfer-encoding: chunked\r\n{ORIGIN}\r\n1000\r\n{'x' * 4096}\r\n1000\r\n", 503),
    "bodies of all": (f"content-length: 4500\r\n{ORIGIN}\r\n{'x' * 4_500}", 503),
    "a long header": (f"{ORIGIN}x: {'y' * 3_000}\r\n\r\n", 431),
    "many headers": (ORIGIN + "x: y\r\n" * 30 + "\r\n", 431),
    "no HTTP": (f"{ORIGIN}content-length: x\r\n\r\n", 400),
}


@pytest.mark.parametrize(("rest", "status"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_page_can_read_why_its_request_is_beyond_a_limit(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, rest: str, status: int
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        for origin, allowed in (("https://page.example", True), ("https://other.example", False)):
            async with RawClient(setup.port) as client:
                request = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{KEY}{rest}"
                await client.send(request.replace("https://page.example", origin).encode())
                answer = await client.answer()
            assert answer.status == status
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
            exposed = answer.headers.get("access-control-expose-headers", "").split(", ")
            read = {"retry-after", "retry-after-ms", "x-should-retry", *map(bytes.decode, EVERY_NAME)}
            assert (read <= set(exposed)) is allowed

    run_gateway(scenario, tenant=TENANTS, wire=LIMITS, cors_origins=("https://page.example",))


def test_a_page_can_read_that_its_key_has_too_many_connections(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as first:
            await first.send(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{KEY}\r\n".encode())
            await first.answer()
            answer = await setup.ask(completion(), headers=ORIGIN + KEY)
            assert answer.status == 429
            assert answer.headers["access-control-allow-origin"] == "https://page.example"

    run_gateway(scenario, tenant=TENANTS, wire=LIMITS)
