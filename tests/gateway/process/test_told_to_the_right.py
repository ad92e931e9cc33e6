"""Who learns what: replicas, clients, the admin address and the log."""

from __future__ import annotations

import logging
from base64 import b64encode
from dataclasses import replace

import pytest

from headway.gateway.settings import TenantSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion
from tests.support.scripted_replica import dies_at_once

TENANTS = (TenantSettings(name="a", key_env="KEY_A"),)


async def status_of(setup: Setup, path: str, host: str) -> int:
    async with RawClient(setup.port) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        return (await client.answer()).status


def test_clients_learn_no_address_of_a_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (named,) = setup.settings.replica
        setup.gateway.reload(replace(setup.settings, replica=(replace(named, name=""),)))
        await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
        port = named.url.rpartition(":")[2]
        answer = await setup.ask()
        assert answer.headers["x-headway-replica"] == "replica-0"
        setup.replicas[0].usual = dies_at_once
        failed = await setup.ask()
        assert failed.status == 502
        for told in (answer, failed):
            assert port not in str(told.headers) + told.body.decode()

    run_gateway(scenario)


def test_without_a_key_no_page_of_another_site_reaches_a_loopback_gateway(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def keyless(setup: Setup) -> None:
        for path in ("/v1/models", "/metrics", "/headway/state"):
            assert await status_of(setup, path, "evil.example") == 421
            assert await status_of(setup, path, f"127.0.0.1:{setup.port}") == 200
            assert await status_of(setup, path, "api.example.com") == 200

    async def with_keys(setup: Setup) -> None:
        assert await status_of(setup, "/health", "evil.example") == 200
        admin = replace(setup, port=setup.gateway.addresses[1][1])
        assert await status_of(admin, "/metrics", "evil.example") == 421
        assert await status_of(admin, "/metrics", "localhost") == 200

    run_gateway(keyless, hosts=("api.example.com",))
    run_gateway(with_keys, tenant=TENANTS, admin_listen="127.0.0.1:0")


def test_a_reload_that_brings_keys_takes_the_inside_from_the_public_address(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        for tenants, status in (((), 200), (TENANTS, 404), ((), 200)):
            setup.gateway.reload(replace(setup.settings, tenant=tenants))
            for path in ("/metrics", "/headway/", "/headway/state"):
                assert (await setup.get(path)).status == status
            assert (await setup.get("/ready")).status == 200

    run_gateway(scenario)


def test_the_admin_address_can_have_a_key(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", "secret-of-the-admin")

    async def scenario(setup: Setup) -> None:
        setup.port = setup.gateway.addresses[1][1]
        refused = await setup.get("/metrics")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="headway"')
        basic = b64encode(b"anyone:secret-of-the-admin").decode()
        for given in ("Bearer secret-of-the-admin", f"Basic {basic}"):
            assert (await setup.get("/metrics", f"authorization: {given}\r\n")).status == 200
        for given in ("Bearer secret", "Basic !", "Basic " + b64encode(b"secret-of-the-admin").decode(), "Digest x"):
            assert (await setup.get("/headway/state", f"authorization: {given}\r\n")).status == 401
        assert (await setup.get("/ready")).status == 200

    run_gateway(scenario, admin_listen="127.0.0.1:0", admin_key_env="ADMIN")


@pytest.mark.parametrize(("proxies", "passes"), [((), False), (("127.0.0.0/8",), True), (("10.0.0.0/8",), False)])
def test_where_a_request_came_from_is_believed_of_trusted_proxies_only(
    run_gateway: RunGateway, proxies: tuple[str, ...], passes: bool
) -> None:
    async def scenario(setup: Setup) -> None:
        names = ("x-forwarded-for", "x-real-ip", "forwarded")
        await setup.ask(headers="".join(f"{name}: 1.2.3.4\r\n" for name in names))
        assert [name in setup.replicas[0].calls[0].headers for name in names] == [passes] * 3

    run_gateway(scenario, trusted_proxies=proxies)


def test_refusals_are_logged_with_their_number(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KEY_A", "secret-of-a")

    async def scenario(setup: Setup) -> None:
        for _ in range(5):
            assert (await setup.ask(completion(), headers="authorization: Bearer secret-of-b\r\n")).status == 401

        def logged() -> int:
            lines = [
                record.__dict__["fields"] for record in caplog.records if record.getMessage() == "requests refused"
            ]
            assert all((line["reason"], line["latest"]) == ("unauthorised", "127.0.0.1") for line in lines)
            assert all("`Authorization: Bearer KEY`" in line["why"] for line in lines)
            return sum(line["requests"] for line in lines)

        await setup.until(lambda: logged() == 5)
        assert "secret-of-b" not in caplog.text

    with caplog.at_level(logging.WARNING, logger="headway.gateway"):
        run_gateway(scenario, tenant=TENANTS)
