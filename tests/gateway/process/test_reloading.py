"""What a reload changes, it changes at once: keys, bounds, health; and the replicas that stay keep their books."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from headway.gateway.process import _reload
from headway.gateway.settings import QueueSettings, Settings, TenantSettings
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import hangs, streams, waits_for


def test_a_key_that_was_changed_in_its_file_is_the_key_after_a_reload(run_gateway: RunGateway, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first-key-1\n")
    tenant = TenantSettings(name="team", key_file=str(file))

    async def scenario(setup: Setup) -> None:
        async def status(key: str) -> int:
            return (await setup.ask(headers=f"authorization: Bearer {key}\r\n")).status

        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        under_way = [asyncio.ensure_future(status("first-key-1")) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        file.write_text("second-key-2\n")
        assert await status("second-key-2") == 401
        setup.gateway.reload(setup.settings)
        assert await status("first-key-1") == 401
        late = asyncio.ensure_future(status("second-key-2"))
        gate.set()
        assert await asyncio.gather(late, *under_way) == [200, 200, 200], "who was let in is served"

    run_gateway(scenario, seats=1, tenant=(tenant,))


def test_bounds_and_health_change_at_once_and_the_replicas_books_stay(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        replica = setup.dispatcher.replicas[0]
        running = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.replicas[0].inside == 1)
        waiting = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        health = replace(setup.settings.health, first_byte_seconds=0.2, failures_to_eject=1)
        setup.gateway.reload(replace(setup.settings, health=health, queue=QueueSettings(max_requests=1)))
        assert setup.dispatcher.replicas == [replica]
        assert (replica.health, replica.ledger.requests) == (health, 1)
        assert (await setup.ask()).reason == "queue-full"
        assert (await running).reason == "replica-timeout"
        answer = await waiting
        assert answer.status in (502, 503, 504)
        await setup.until(lambda: replica.is_up)

    run_gateway(scenario, seats=1)


def test_what_waits_for_a_restart_is_named(run_gateway: RunGateway, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(setup: Setup) -> None:
        changed = replace(
            setup.settings,
            listen="127.0.0.1:1",
            queue=QueueSettings(max_requests=7),
            wire=replace(setup.settings.wire, connections=5),
            state=replace(setup.settings.state, path="state.json", save_seconds=5.0),
        )
        await _reload(setup.gateway, lambda: changed, [])

    with caplog.at_level(logging.INFO, logger="headway.gateway"):
        run_gateway(scenario)
    done = next(record for record in caplog.records if record.getMessage() == "configuration reloaded")
    facts = done.__dict__["fields"]
    assert facts["tenants"] == 0
    assert facts["changed"] == ["listen", "queue.max_requests", "state.path", "state.save_seconds", "wire.connections"]
    assert facts["needs_restart"] == ["listen", "state.path", "wire.connections"]
    assert "these keys changed and need a restart: listen, state.path, wire.connections" in caplog.messages


def test_a_reload_that_lets_everybody_in_says_so(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        await _reload(setup.gateway, lambda: replace(setup.settings, tenant=()), [])
        assert (await setup.ask()).status == 200

    with caplog.at_level(logging.WARNING, logger="headway.gateway"):
        run_gateway(scenario, tenant=(TenantSettings(name="team", key_env="TEAM_KEY"),))
    assert caplog.messages == ["no tenant is configured any more: requests need no key"]


def test_the_file_is_read_again_beside_the_loop(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        is_reading, may_go_on = threading.Event(), threading.Event()

        def reread() -> Settings:
            is_reading.set()
            assert may_go_on.wait(120)
            return replace(setup.settings, queue=QueueSettings(max_requests=7))

        reloading = asyncio.ensure_future(_reload(setup.gateway, reread, []))
        await setup.until(is_reading.is_set)
        assert (await setup.ask()).status == 200
        may_go_on.set()
        await reloading
        assert setup.dispatcher.settings.queue.max_requests == 7

    run_gateway(scenario)


def test_a_reload_that_fails_changes_nothing(run_gateway: RunGateway) -> None:
    def raises(error: Exception) -> Settings:
        raise error

    async def scenario(setup: Setup) -> None:
        for error in (ValueError("a key is wrong"), RuntimeError("a plug-in of the file cannot be loaded")):
            await _reload(setup.gateway, partial(raises, error), [])
            assert setup.dispatcher.settings == setup.settings
            assert (await setup.ask()).status == 200

    run_gateway(scenario)
