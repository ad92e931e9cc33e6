"""Replicas that come, leave, return and change their address while requests wait and stream."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from headway.cli.explain_live import live_lines
from headway.gateway.settings import ReplicaSettings, ReplicaSourceSettings
from tests.gateway.process.test_administration import ADMIN, ADMIN_KEY, admin
from tests.support.gateway_setup import Answer, RawClient, RunGateway, Setup, completion
from tests.support.scripted_replica import ScriptedReplica, echoes, waits_for


class EnginesFile:
    """A file of targets, and the source that watches it."""

    def __init__(self, folder: Path, **each: object) -> None:
        self.path = folder / "engines.json"
        self.path.write_text("[]", encoding="utf-8")
        self.source = ReplicaSourceSettings(file=str(self.path), refresh_seconds=0.02, each=each)

    def name(self, *replicas: ScriptedReplica) -> None:
        targets = [f"127.0.0.1:{one.port}" for one in replicas]
        other = self.path.with_suffix(".new")
        other.write_text(json.dumps([{"targets": targets}]), encoding="utf-8")
        other.replace(self.path)


def up(setup: Setup) -> list[str]:
    return sorted(one.name for one in setup.dispatcher.replicas if one.is_up)


def names(*replicas: ScriptedReplica) -> list[str]:
    return sorted(f"{one.host}:{one.port}" for one in replicas)


def configure(setup: Setup, *replicas: ScriptedReplica) -> None:
    named = tuple(ReplicaSettings(one.url, name=f"r{number}") for number, one in enumerate(replicas))
    setup.settings = replace(setup.settings, replica=named)
    setup.gateway.reload(setup.settings)


async def metrics(setup: Setup) -> str:
    return (await setup.get("/metrics")).body.decode()


def test_one_that_comes_gets_what_waits_and_one_that_leaves_ends_what_it_has(
    run_gateway: RunGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headway.gateway")
    file = EnginesFile(tmp_path, max_requests=1)

    async def scenario(setup: Setup) -> None:
        first, second = setup.replicas
        gate = asyncio.Event()
        first.usual = waits_for(gate, echoes(3))
        second.usual = echoes(3)
        file.name(first)
        await setup.until(lambda: up(setup) == names(first))
        running = asyncio.create_task(setup.ask(completion(prompt="running")))
        await setup.until(lambda: first.inside == 1)
        waiting = [asyncio.create_task(setup.ask(completion(prompt=f"w{number}"))) for number in range(3)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        file.name(second)
        assert [(await one).status for one in waiting] == [200] * 3
        assert {call.json()["prompt"] for call in second.calls} == {"w0", "w1", "w2"}
        assert not running.done(), "it goes on at the replica that left"
        page = await metrics(setup)
        assert f'headway_replica_up{{replica="127.0.0.1:{second.port}"}} 1' in page
        assert f"127.0.0.1:{first.port}" not in page
        state = (await setup.get("/headway/state")).json()
        assert {one["source"] for one in state["replicas"]} == {f"file {file.path}"}
        gate.set()
        assert (await running).texts == "running.0 running.1 running.2 "
        await setup.until(lambda: not setup.gateway._membership.leaving)

    run_gateway(scenario, replicas=2, replica=(), replica_source=(file.source,))
    said = [one.getMessage() for one in caplog.records if one.getMessage().startswith("replica 127")]
    said = [line for line in said if " serves " not in line and " is up" not in line]
    assert [line.partition(" ")[2].partition(" ")[2].partition(":")[0] for line in said] == [
        "is there",
        "is there",
        "leaves",
    ]
    assert said[-1].endswith("names it no more")


def test_one_that_returns_still_has_its_requests_and_what_was_learned(run_gateway: RunGateway, tmp_path: Path) -> None:
    file = EnginesFile(tmp_path, max_requests=1)

    async def scenario(setup: Setup) -> None:
        (only,) = setup.replicas
        gate = asyncio.Event()
        only.usual = waits_for(gate, echoes(2))
        file.name(only)
        await setup.until(lambda: up(setup))
        (before,) = setup.dispatcher.replicas
        running = asyncio.create_task(setup.ask(completion(prompt="running")))
        await setup.until(lambda: only.inside == 1)
        waiting = asyncio.create_task(setup.ask(completion(prompt="waiting")))
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        for _ in range(3):
            file.name()
            await setup.until(lambda: not setup.dispatcher.replicas)
            file.name(only)
            await setup.until(lambda: up(setup))
            assert setup.dispatcher.replicas == [before]
        await asyncio.sleep(0.1)
        assert (only.inside, before.ledger.requests, len(only.calls)) == (1, 1, 1), "its one place is taken"
        gate.set()
        assert [(await one).texts for one in (running, waiting)] == [
            "running.0 running.1 ",
            "waiting.0 waiting.1 ",
        ]
        assert len(only.calls) == 2

    run_gateway(scenario, replica=(), replica_source=(file.source,))


def test_nothing_is_lost_or_sent_twice_while_replicas_flap(run_gateway: RunGateway, tmp_path: Path) -> None:
    file = EnginesFile(tmp_path, max_requests=4)
    chance = random.Random(7)

    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = echoes(4, gap=0.01)
        steady, *others = setup.replicas
        file.name(*setup.replicas)
        await setup.until(lambda: len(up(setup)) == 4)
        asks = [asyncio.create_task(setup.ask(completion(prompt=f"m{number}"))) for number in range(200)]
        changes = 0
        while not all(one.done() for one in asks):
            file.name(steady, *(one for one in others if chance.random() < 0.5))
            changes += 1
            await asyncio.sleep(0.05)
        for number, one in enumerate(asks):
            answer = await one
            assert answer.status == 200, (number, answer)
            assert answer.texts == "".join(f"m{number}.{token} " for token in range(4))
        sent = Counter(str(call.json()["prompt"]) for one in setup.replicas for call in one.calls)
        assert set(sent.values()) == {1}
        assert len(sent) == 200
        assert changes > 5

    run_gateway(scenario, replicas=4, replica=(), replica_source=(file.source,))


def test_a_mistake_in_the_file_changes_nothing_and_an_address_counts_once(
    run_gateway: RunGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = EnginesFile(tmp_path)

    async def scenario(setup: Setup) -> None:
        first, second = setup.replicas
        file.name(first, second, first)
        await setup.until(lambda: len(up(setup)) == 2)
        assert setup.dispatcher.replicas[0].source == "the configuration"
        assert setup.dispatcher.replicas[0].name == "r0"
        file.path.write_text('[{"targets": ["127.0.0.1"', encoding="utf-8")
        await setup.until(lambda: setup.gateway._register.sources[0].report.faults > 3)
        assert len(up(setup)) == 2
        page = await metrics(setup)
        assert f'headway_replica_source_up{{source="file {file.path}"}} 0' in page
        assert f'headway_replica_source_replicas{{source="file {file.path}"}} 2' in page
        file.name()
        await setup.until(lambda: len(setup.dispatcher.replicas) == 1)
        assert f'headway_replica_source_up{{source="file {file.path}"}} 1' in await metrics(setup)

    async def whole(setup: Setup) -> None:
        configure(setup, setup.replicas[0])
        await scenario(setup)

    run_gateway(whole, replicas=2, replica=(), replica_source=(file.source,))
    lines = [one.getMessage() for one in caplog.records if "stay as they are" in one.getMessage()]
    assert len(lines) == 1
    assert str(file.path) in lines[0]


def test_more_than_the_bound_are_left_out(
    run_gateway: RunGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = EnginesFile(tmp_path)

    async def scenario(setup: Setup) -> None:
        file.name(*setup.replicas)
        await setup.until(lambda: len(up(setup)) == 2)
        assert up(setup) == names(*setup.replicas)[:2]
        assert "; 1 are left out" in caplog.text

    run_gateway(scenario, replicas=3, replica=(), replica_source=(replace(file.source, replicas_max=2),))


def test_a_reload_follows_other_sources_and_keeps_those_that_stay(run_gateway: RunGateway, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = EnginesFile(tmp_path / "a"), EnginesFile(tmp_path / "b")

    async def scenario(setup: Setup) -> None:
        first, second = setup.replicas
        a.name(first)
        b.name(second)
        await setup.until(lambda: up(setup) == names(first))
        kept = setup.dispatcher.replicas[0]
        setup.gateway.reload(replace(setup.settings, replica_source=(b.source, a.source)))
        assert setup.dispatcher.replicas == [kept]
        await setup.until(lambda: up(setup) == names(first, second))
        assert kept in setup.dispatcher.replicas
        setup.gateway.reload(replace(setup.settings, replica_source=(b.source,)))
        assert up(setup) == names(second)
        a.name(first, second)
        await asyncio.sleep(0.1)
        assert up(setup) == names(second), "the other file is watched no more"

    run_gateway(scenario, replicas=2, replica=(), replica_source=(a.source,))


def test_numbers_of_nameless_replicas_stay_as_others_leave(run_gateway: RunGateway, tmp_path: Path) -> None:
    file = EnginesFile(tmp_path)

    async def scenario(setup: Setup) -> None:
        file.name(*setup.replicas)
        await setup.until(lambda: len(up(setup)) == 3)
        shown = {one.name: one.shown_as for one in setup.dispatcher.replicas}
        assert sorted(shown.values()) == ["replica-0", "replica-1", "replica-2"]
        leaving = min(setup.replicas, key=lambda one: one.port)
        staying = [one for one in setup.replicas if one is not leaving]
        file.name(*staying)
        await setup.until(lambda: len(up(setup)) == 2)
        assert {one.name: one.shown_as for one in setup.dispatcher.replicas} == {
            name: number for name, number in shown.items() if name in names(*staying)
        }
        file.name(*setup.replicas)
        await setup.until(lambda: len(up(setup)) == 3)
        assert {one.name: one.shown_as for one in setup.dispatcher.replicas} == shown

    run_gateway(scenario, replicas=3, replica=(), replica_source=(file.source,))


@pytest.mark.parametrize("kind", ["dns", "srv"])
def test_names_are_followed_and_a_failure_of_the_name_server_changes_nothing(
    run_gateway: RunGateway, kind: str
) -> None:
    pytest.importorskip("dns", reason="the extra `dns` is not installed")
    import dns.rcode

    from tests.support.name_server import name_server

    async def scenario(setup: Setup) -> None:
        async with name_server() as server, AsyncExitStack() as stack:
            first, second = ScriptedReplica(echoes(2)), ScriptedReplica(echoes(2))
            first.host, second.host = "127.0.0.31", "127.0.0.32"
            for one in (first, second):
                one.port = first.port
                stack.push_async_callback((await one.start()).stop)
            server.records[("_vllm._tcp.test", "SRV")] = [f"0 0 {first.port} engines.test."]
            server.records[("engines.test", "A")] = [first.host]
            named = {"dns": f"engines.test:{first.port}", "srv": "_vllm._tcp.test"}[kind]
            source = ReplicaSourceSettings(nameserver=server.address, refresh_seconds=0.05, **{kind: named})
            setup.gateway.reload(replace(setup.settings, replica_source=(source,)))
            await setup.until(lambda: up(setup) == names(first))
            server.rcode = dns.rcode.SERVFAIL
            await setup.until(lambda: setup.gateway._register.sources[0].report.faults > 2)
            assert (await setup.ask(completion(prompt="a"))).texts == "a.0 a.1 "
            server.rcode, server.records[("engines.test", "A")] = None, [second.host]
            await setup.until(lambda: up(setup) == names(second))
            assert (await setup.ask(completion(prompt="b"))).texts == "b.0 b.1 "
            assert [len(one.calls) for one in (first, second)] == [1, 1]
            server.records.clear()
            await setup.until(lambda: not setup.dispatcher.replicas)

    run_gateway(scenario, replicas=0)


def test_one_that_leaves_is_shown_until_its_requests_end(run_gateway: RunGateway, tmp_path: Path) -> None:
    file = EnginesFile(tmp_path)

    async def scenario(setup: Setup) -> None:
        first, second = setup.replicas
        gate = asyncio.Event()
        first.usual = waits_for(gate, echoes(1))
        second.usual = echoes(1)
        file.name(first)
        await setup.until(lambda: up(setup))
        running = asyncio.create_task(setup.ask(completion(prompt="r"), headers="x-request-id: long\r\n"))
        await setup.until(lambda: first.inside == 1)
        file.name(second)
        await setup.until(lambda: up(setup) == names(second))

        async def shown() -> dict[str, str]:
            state = (await setup.get("/headway/state")).json()
            listed = (await admin(setup, "/replicas")).json()
            health = {one["name"]: one["health"] for one in state["replicas"]}
            assert health == {one["name"]: one["health"] for one in listed["replicas"]}
            return health

        (leaving,), (there,) = names(first), names(second)
        assert await shown() == {leaving: "leaving", there: "up"}
        await setup.ask(completion(prompt="s"), headers="x-request-id: short\r\n")
        gate.set()
        await running
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert await shown() == {there: "up"}
        url = f"http://127.0.0.1:{setup.port}"
        for asked, replica in (("long", leaving), ("short", there)):
            assert replica in "\n".join(await asyncio.to_thread(live_lines, url, asked))

    run_gateway(scenario, replicas=2, replica=(), replica_source=(file.source,), admin=ADMIN)


# By hand


async def change(setup: Setup, method: str, name: str, body: object = None, key: str = ADMIN_KEY) -> Answer:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} /admin/replicas/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    async with RawClient(setup.gateway.addresses[-1][1]) as client:
        await client.send(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return await client.answer()


def test_replicas_are_added_changed_and_removed_by_hand(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headway.gateway")

    async def scenario(setup: Setup) -> None:
        configure(setup, setup.replicas[0])
        second = setup.replicas[1]
        url = {"url": second.url}
        assert (await change(setup, "PUT", "gpu-7", url, key="key-unknown-4")).status == 401
        added = await change(setup, "PUT", "gpu-7", url)
        assert (added.status, added.json()["before"], added.json()["after"]["url"]) == (201, None, second.url)
        await setup.until(lambda: up(setup) == ["gpu-7", "r0"])
        kept = setup.dispatcher.replicas[1]
        assert (await change(setup, "PUT", "gpu-7", url)).status == 200
        assert setup.dispatcher.replicas[1] is kept, "the same again changes nothing"
        setup.gateway.reload(setup.settings)
        assert setup.dispatcher.replicas[1] is kept, "it stays after a reload"
        assert (await change(setup, "PUT", "gpu-7", {**url, "max_requests": 3})).json()["after"]["max_requests"] == 3
        await setup.until(lambda: up(setup) == ["gpu-7", "r0"])
        assert setup.dispatcher.replicas[1].ledger.requests_max == 3
        listed = (await admin(setup, "/replicas")).json()["replicas"]
        assert [(one["name"], one["source"]) for one in listed] == [("r0", "the configuration"), ("gpu-7", "/admin")]
        answer = await setup.ask(headers="x-request-id: a\r\n")
        assert answer.headers["x-headway-replica"] in ("r0", "gpu-7")
        gone = await change(setup, "DELETE", "gpu-7")
        assert (gone.status, gone.json()["after"]) == (200, None)
        assert up(setup) == ["r0"]
        assert (await change(setup, "DELETE", "gpu-7")).status == 404

    run_gateway(scenario, replicas=2, replica=(), admin=ADMIN)
    assert sum(one.getMessage() == "administration" for one in caplog.records) == 4
    assert any("replica gpu-7 leaves: an operator removed it" in one.getMessage() for one in caplog.records)


def test_each_mistake_by_hand_has_its_answer(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_ANOTHER_PROGRAM", "not-for-engines")

    async def scenario(setup: Setup) -> None:
        configure(setup, setup.replicas[0])
        url = setup.replicas[1].url
        for name, body, status, said in (
            ("x", b"", 400, "must be a JSON object"),
            ("x", b"[]", 400, "must be a JSON object"),
            ("x", b"\xff", 400, "must be a JSON object"),
            ("x", {}, 400, "must be a JSON object"),
            ("x", {"max_requests": 1}, 400, "url is missing"),
            ("x", {"url": "ftp://a"}, 400, "replica.url must be like"),
            ("x", {"url": url, "uurl": 1}, 400, "unknown key"),
            ("x", {"url": url, "name": "y"}, 400, "leave it out of the body"),
            ("x", {"url": url, "max_requests": 0}, 400, "max_requests must be at least 1"),
            ("x", {"url": url, "max_requests": "many"}, 400, "max_requests must be"),
            ("x", {"url": url, "api_key_env": "SECRET_OF_ANOTHER_PROGRAM"}, 400, "the configuration names"),
            ("x", {"url": setup.replicas[0].url}, 400, "its url is that of 'r0', of the configuration"),
            ("r0", {"url": url}, 400, "'r0' is a replica of the configuration already"),
            ("a%0ab", {"url": url}, 400, "printable"),
            ("x" * 201, {"url": url}, 400, "characters long"),
            ("x", b"[" * 3_000, 400, "must be a JSON object"),
            ("x", b" " * 5_000, 413, "4,096 bytes"),
        ):
            answer = await change(setup, "PUT", name, body)
            assert (answer.status, said in answer.json()["error"]["message"]) == (status, True), (body, answer)
        answer = await change(setup, "DELETE", "r0")
        assert (answer.status, "comes from the configuration" in answer.body.decode()) == (409, True)
        assert (await change(setup, "DELETE", "none")).status == 404
        assert (await change(setup, "POST", "x")).headers["allow"] == "DELETE, PUT"
        assert up(setup) == ["r0"]

    run_gateway(scenario, replicas=2, replica=(), admin=ADMIN)


def test_one_that_is_drained_and_returns_is_not_sent_requests_it_has_no_place_for(
    run_gateway: RunGateway,
) -> None:
    """Removed by hand while a request runs, and added again: it is the same replica, with the same request."""

    async def scenario(setup: Setup) -> None:
        (only,) = setup.replicas
        gate = asyncio.Event()
        only.usual = waits_for(gate, echoes(2))
        body = {"url": only.url, "max_requests": 1}
        await change(setup, "PUT", "gpu", body)
        await setup.until(lambda: up(setup))
        running = asyncio.create_task(setup.ask(completion(prompt="a")))
        await setup.until(lambda: only.inside == 1)
        await change(setup, "DELETE", "gpu")
        waiting = asyncio.create_task(setup.ask(completion(prompt="b")))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "it waits for a replica"
        await change(setup, "PUT", "gpu", body)
        await setup.until(lambda: up(setup))
        assert setup.dispatcher.replicas[0].ledger.requests == 1
        gate.set()
        assert [(await one).status for one in (running, waiting)] == [200, 200]

    run_gateway(scenario, replica=(), admin=ADMIN)
