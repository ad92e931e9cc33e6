"""The four forms of a request target (RFC 9112, section 3.2): each has its answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headway.gateway.settings import TenantSettings
from tests.support.gateway_setup import Answer, RawClient, RunGateway, Setup, completion, post

HOST = "host: x\r\n"


async def asked(setup: Setup, line: str, headers: str = HOST) -> Answer:
    async with RawClient(setup.port) as client:
        await client.send(f"{line}\r\n{headers}\r\n".encode())
        return await client.answer()


def test_an_absolute_target_is_its_path_and_its_authority_is_the_host(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        paths = ["/v1/completions", "/v1/completions?a=/../", "/v1/completions?u=http://y/"]
        for at, path in enumerate(paths):
            for scheme in ("http", "HTTPS"):
                async with RawClient(setup.port) as client:
                    await client.send(post(completion(), f"{scheme}://[::1]:80{path}"))
                    assert (await client.answer()).texts == "t0 t1 t2 "
            for call in setup.replicas[0].calls[2 * at :]:
                assert call.path == path
                assert call.headers["host"] == setup.replicas[0].url.removeprefix("http://")
        assert (await asked(setup, "GET http://x/health HTTP/1.1")).json() == {"status": "ok"}
        assert (await asked(setup, "GET http://x/health HTTP/1.0", "")).json() == {"status": "ok"}
        for root in ("http://x", "http://x/", "http://x?a"):
            answer = await asked(setup, f"GET {root} HTTP/1.1")
            assert (answer.status, answer.reason) == (404, "not-found")
            assert "unknown path /;" in answer.json()["error"]["message"]

    run_gateway(scenario)


def test_every_rule_about_paths_hosts_and_keys_holds_for_it(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")
    local, foreign = "127.0.0.1", "evil.example"

    async def keyless(setup: Setup) -> None:
        for authority, host, status in ((local, local, 200), (local, foreign, 200), (foreign, local, 421)):
            for line in ("GET http://{}/metrics HTTP/1.1", "OPTIONS http://{} HTTP/1.1"):
                assert (await asked(setup, line.format(authority), f"host: {host}\r\n")).status == status
            admin = replace(setup, port=setup.gateway.addresses[-1][1])
            assert (await asked(admin, f"GET http://{authority}/ready HTTP/1.1", f"host: {host}\r\n")).status == status
        assert (await asked(setup, f"GET http://{foreign}/health HTTP/1.0", "")).status == 421
        assert (await asked(setup, f"GET http://{local}/v1/../sleep HTTP/1.1")).status == 400
        assert (await asked(setup, f"POST http://{local}/v1/load_lora_adapter HTTP/1.1")).status == 404
        assert setup.replicas[0].calls == []

    async def with_keys(setup: Setup) -> None:
        assert (await asked(setup, "GET http://x/v1/models HTTP/1.1")).status == 401
        key = "authorization: Bearer secret-of-a\r\n"
        assert (await asked(setup, "GET http://x/v1/models HTTP/1.1", HOST + key)).status == 200

    run_gateway(keyless)
    run_gateway(with_keys, tenant=(TenantSettings(name="a", key_env="KEY_A"),))


REFUSED = {
    "no host": ("GET http://x/health HTTP/1.1", "", 400, "exactly one host"),
    "two hosts": ("GET http://x/health HTTP/1.1", HOST * 2, 400, "exactly one host"),
    "a host that is none": ("GET http://x/health HTTP/1.1", "host: a b\r\n", 400, "names no host"),
    "a host that is none, of a path": ("GET /health HTTP/1.1", "host: a/b\r\n", 400, "names no host"),
    "a URL without a host": ("GET http:///health HTTP/1.1", HOST, 400, ""),
    "a URL with a port alone": ("GET http://:80/health HTTP/1.1", HOST, 400, "names no host"),
    "a URL with a user": ("GET http://a:b@x/health HTTP/1.1", HOST, 400, "user name"),
    "another scheme": ("GET ftp://x/health HTTP/1.1", HOST, 400, "http://"),
    "no URL": ("GET health HTTP/1.1", HOST, 400, ""),
    "an authority without CONNECT": ("GET x:80 HTTP/1.1", HOST, 400, ""),
    "a tunnel": ("CONNECT x:80 HTTP/1.1", HOST, 501, "CONNECT"),
    "an asterisk without OPTIONS": ("GET * HTTP/1.1", HOST, 400, "OPTIONS"),
}


@pytest.mark.parametrize(("line", "headers", "status", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    run_gateway: RunGateway, line: str, headers: str, status: int, says: str
) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(f"{line}\r\n{headers}\r\nGET /health HTTP/1.1\r\n{HOST}\r\n".encode())
            answer = await client.answer()
            assert (answer.status, answer.reason) == (status, "malformed")
            assert says in answer.json()["error"]["message"]
            assert await client.closes()

    run_gateway(scenario)


@pytest.mark.parametrize("target", ["*", "http://x"])
def test_options_about_the_gateway_itself_are_its_methods(run_gateway: RunGateway, target: str) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            for _ in range(2):  # the connection goes on
                await client.send(f"OPTIONS {target} HTTP/1.1\r\n{HOST}\r\n".encode())
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, b"")
                assert answer.headers["allow"] == "GET, HEAD, POST, DELETE, OPTIONS"
        assert setup.replicas[0].calls == []

    run_gateway(scenario)


def test_hosts_of_every_legal_form_are_taken(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for host in ("", "x", "x:", "x:8000", "a_b-c.example:80", "[::1]", "[fe80::1%25eth0]:80", "127.0.0.1", "x%41"):
            status = (await asked(setup, "GET /health HTTP/1.1", f"Host: {host}  \r\n")).status
            assert status == (421 if "example" in host else 200), host

    run_gateway(scenario)


def test_blanks_behind_a_header_are_none_of_its_value(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked  \r\n\r\n"
            body = json.dumps(completion()).encode()
            await client.send(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            assert (await client.answer()).texts == "t0 t1 t2 "

    run_gateway(scenario)
