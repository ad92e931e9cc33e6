"""The gateway's life: other settings while it runs, going without losing anybody, and the process around it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway import process
from headway.gateway.gateway import Gateway
from headway.gateway.settings import (
    HealthSettings,
    PolicySettings,
    ReplicaSettings,
    Settings,
    TenantSettings,
)
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, ScriptedReplica, hangs, streams, text, waits_for
from tests.support.serve_process import HEADWAY, fetched, next_line, serving


def test_draining_finishes_what_is_inside_and_takes_nothing_more(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        async with RawClient(setup.port) as idle, RawClient(setup.port) as busy:
            await idle.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            await idle.answer()
            await busy.send(post(completion()))
            queued = asyncio.ensure_future(setup.ask())
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            draining = asyncio.ensure_future(setup.gateway.drain())
            assert await idle.closes()
            with pytest.raises(ConnectionError):
                await setup.get("/health")
            gate.set()
            assert (await busy.answer()).texts == "t0 t1 t2 "
            assert (await queued).status == 200
            assert await draining

    run_gateway(scenario, seats=1)


@pytest.mark.parametrize("cut", [10, 60, -5])
def test_a_request_that_has_begun_to_come_when_the_gateway_goes_is_answered(run_gateway: RunGateway, cut: int) -> None:
    async def scenario(setup: Setup) -> None:
        sent = post(completion(prompt="x" * 300))
        async with RawClient(setup.port) as client:
            await client.send(sent[:cut])
            await setup.until(lambda: any(one._begun for one in setup.clients))
            draining = asyncio.ensure_future(setup.gateway.drain())
            await asyncio.sleep(0.1)
            assert not draining.done()
            await client.send(sent[cut:])
            answer = await client.answer()
            assert (answer.status, answer.reason) == (503, "draining")
            assert answer.headers["connection"] == "close"
            assert await client.closes()
            assert await draining

    run_gateway(scenario)


def test_what_the_end_cuts_off_is_answered_and_counted_as_that(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def begins(call: Call) -> None:
            await call.head()
            await call.event(text("t0 "))
            await call.left.wait()

        setup.replicas[0].next += [begins, hangs]
        async with RawClient(setup.port) as streamed, RawClient(setup.port) as sent, RawClient(setup.port) as queued:
            await streamed.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            await sent.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 2)
            await queued.send(post(completion()))
            await setup.until(lambda: setup.dispatcher.counts.inside == 3)
            setup.gateway.settings = replace(setup.settings, health=replace(setup.settings.health, drain_seconds=0.2))
            assert not await setup.gateway.drain()
            assert setup.gateway.cut_off == 3
            broken = await streamed.answer()
            assert broken.whole
            assert b'"message": "this gateway is shutting down"' in broken.body
            assert b'"code": "server_is_overloaded"' in broken.body, "as of a refusal for that reason"
            assert b'"finish_reason": "error"' in broken.body
            for client in (sent, queued):
                refused = await client.answer()
                assert (refused.status, refused.reason) == (503, "draining")
                assert "retry-after" in refused.headers
        counts = setup.dispatcher.counts
        assert {str(outcome): number for outcome, number in counts.ended.items() if number} == {
            "failed": 2,
            "refused": 1,
        }
        assert len(setup.replicas[0].calls) == 2

    run_gateway(scenario, seats=2)


def test_the_end_is_shown_while_requests_are_still_taken(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        admin = replace(setup, port=setup.gateway.addresses[1][1])
        assert (await admin.get("/ready")).status == (await setup.get("/ready")).status == 200
        leaving = asyncio.ensure_future(setup.gateway.announce_end())
        await asyncio.sleep(0)
        for one in (admin, setup):
            answer = await one.get("/ready")
            assert (answer.status, answer.json()["draining"]) == (503, True)
        assert (await setup.ask()).status == 200
        assert not leaving.done()
        leaving.cancel()

    health = replace(QUICK, lame_duck_seconds=600.0)
    run_gateway(scenario, health=health, admin_listen="127.0.0.1:0")


def test_signals_that_come_before_it_listens_take_effect_then(monkeypatch: pytest.MonkeyPatch) -> None:
    start, reads = Gateway.start, []

    async def signalled(gateway: Gateway) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        await start(gateway)

    monkeypatch.setattr(Gateway, "start", signalled)
    settings = Settings(listen="127.0.0.1:0", health=HealthSettings(lame_duck_seconds=0.0))

    def reread() -> Settings:
        reads.append(1)
        return settings

    with asyncio.Runner() as runner:
        assert runner.run(process._serve(settings, reread, log_requests=False))
    assert reads == [1]


def test_a_gateway_that_serves_its_metrics_nowhere_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = Gateway.start

    async def ended(gateway: Gateway) -> None:
        await start(gateway)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Gateway, "start", ended)
    with_tenants = Settings(listen="127.0.0.1:0", tenant=(TenantSettings(name="t", key_sha256="a" * 64),))
    sentence = "metrics and live page are served nowhere: with tenants they need `admin_listen`"
    for settings, warned in ((with_tenants, 1), (replace(with_tenants, admin_listen="127.0.0.1:0"), 0)):
        caplog.clear()
        with asyncio.Runner() as runner:
            assert runner.run(process._serve(settings, None, log_requests=False))
        assert caplog.messages.count(sentence) == warned


def test_reloading_under_load_loses_nobody(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = streams(6, gap=0.005)
        third = await ScriptedReplica(streams(6, gap=0.005)).start()
        first, second = setup.settings.replica
        asking = [asyncio.ensure_future(setup.ask(completion(prompt="x" * (10 * n)))) for n in range(80)]
        orders = ("smallest-volume-first", "fair-share", "highest-response-ratio", "ewsjf", "fcfs")
        sets = ((first,), (first, second), (second, ReplicaSettings(url=third.url, max_requests=4)), (first, second))
        for ordering, replicas in zip(orders, (*sets, sets[0]), strict=True):
            await asyncio.sleep(0.03)
            setup.gateway.reload(replace(setup.settings, replica=replicas, policies=PolicySettings(ordering=ordering)))
        found = await asyncio.gather(*asking)
        assert {(answer.status, answer.texts.count("t")) for answer in found} == {(200, 6)}
        assert setup.dispatcher.counts.arrived == 80
        await setup.until(lambda: not setup.gateway._membership.leaving)
        await third.stop()

    run_gateway(scenario, replicas=2, seats=3)


def test_a_reload_with_an_unreadable_key_changes_nothing(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        bad = replace(setup.settings, replica=(), tenant=(TenantSettings(name="t", key_env="NO_SUCH_VARIABLE"),))
        with pytest.raises(ValueError, match="NO_SUCH_VARIABLE holds no key"):
            setup.gateway.reload(bad)
        assert (await setup.ask()).status == 200

    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    run_gateway(scenario)


def test_the_inside_has_an_address_of_its_own(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await setup.get("/metrics")).status == 404
        setup.port = setup.gateway.addresses[1][1]
        assert (await setup.get("/metrics")).status == 200
        assert (await setup.get("/headway/state")).status == 200
        assert (await setup.get("/v1/models")).status == 404
        assert (await setup.ask()).status == 404

    run_gateway(scenario, admin_listen="127.0.0.1:0")


# The process


def test_a_start_that_fails_leaves_no_record_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = [*HEADWAY, "serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--record", tmp_path / "r.jsonl"]
        said = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_the_first_run_needs_nothing_and_ends_on_sigterm(tmp_path: Path) -> None:
    record = tmp_path / "night.jsonl"
    with serving("--record", record, "--log-requests") as (process, url):
        model = json.loads(fetched(url + "/v1/models"))["data"][0]
        assert model["owned_by"] == "headway-simulated"
        body = {"model": model["id"], "prompt": "hello", "max_tokens": 6, "ignore_eos": True}
        answer = json.loads(fetched(url + "/v1/completions", body))
        assert answer["choices"][0]["text"].startswith("This text comes from Headway's simulated")
        assert answer["usage"]["completion_tokens"] == 6
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0
    lines = [json.loads(line) for line in told.splitlines()]
    assert lines[-1] == lines[-1] | {"message": "stopped", "arrived": 1, "completed": 1, "cut_off": 0}
    assert "hello" not in told
    assert json.loads(record.read_text())["output_length"] == 6


def test_sighup_reads_the_file_again_and_keeps_the_old_where_it_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[policies]\nordering = "fcfs"\n')
    with serving("--config", config) as (process, url):
        assert process.stderr is not None

        def ordering() -> str:
            return str(json.loads(fetched(url + "/headway/state"))["policies"]["ordering"])

        assert ordering() == "fcfs"
        config.write_text('[policies]\nordering = "smalest-volume-first"\n')
        process.send_signal(signal.SIGHUP)
        assert next_line(process, "did you mean 'smallest-volume-first'?")
        assert ordering() == "fcfs"
        config.write_text('[policies]\nordering = "smallest-volume-first"\n')
        process.send_signal(signal.SIGHUP)
        assert json.loads(next_line(process, "configuration reloaded"))["changed"] == ["policies.ordering"]
        assert ordering() == "smallest-volume-first"


def test_the_log_tells_what_starts_and_what_a_replica_serves(tmp_path: Path) -> None:
    with serving("--log-format", "text", "--log-requests") as (process, url):
        model = json.loads(fetched(url + "/v1/models"))["data"][0]["id"]
        body = {"model": model, "prompt": "hello", "max_tokens": 6, "ignore_eos": True}
        fetched(url + "/v1/completions", body)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=120)
    lines = log.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) ", line) for line in lines)
    assert any("replica simulated-0 is up" in line for line in lines)
    assert any("replica simulated-0 serves 1 models" in line and model in line for line in lines)
    (request,) = [line for line in lines if "INFO request " in line]
    assert "counted_output_tokens=6" in request
    assert f"model={model}" in request


def test_the_start_names_replicas_and_policies(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[aliases]\nbest = "llama-3.1-8b"\n[policies]\nordering = "fcfs"\n')
    process = subprocess.Popen(
        [*HEADWAY, "serve", "--listen", "127.0.0.1:0", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    facts = json.loads(next_line(process, '"listening"'))
    process.kill()
    process.communicate()
    assert facts["replicas"] == ["simulated-0"]
    assert facts["models"] == ["best"]
    assert facts["policies"]["ordering"] == "fcfs"
    assert facts["time"].endswith("Z")


def test_load_prints_the_table_of_compare(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    with serving("--embedded-replicas", "2") as (_, url):
        line = [*HEADWAY, "load", url, "--workload", "chat-and-documents"]
        options = ["--requests", "12", "--rate", "40", "--label", "live", "--json", str(numbers)]
        done = subprocess.run([*line, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert re.search(r"^live ", done.stdout, re.MULTILINE)
    run = json.loads(numbers.read_text())["runs"][0]
    assert (run["requests"], run["completed"], run["refused"], run["preemptions"]) == (12, 12, 0, None)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("serve", "--policy", "fcsf"), "did you mean 'fcfs'?"),
        (("serve", "--replica", "localhost:8000"), "replica[0].url must be like http://127.0.0.1:8001"),
        (("serve", "--replica", "http://127.0.0.1:1/v1"), "(without /v1)"),
        (("serve", "--listen", "8000"), 'listen must be host:port, for example "127.0.0.1:8000"'),
        (("serve", "--config", "none.toml"), "none.toml: it cannot be read"),
        (("serve", "--hardware", "h1000"), "unknown hardware"),
        (
            ("serve", "--replica", "http://127.0.0.1:1", "--embedded-replicas", "2"),
            "--embedded-replicas describes simulated engines, and there are replicas; leave it out",
        ),
        (("load", "127.0.0.1:8000"), "is no endpoint"),
        (("load", "http://127.0.0.1:9"), "cannot be reached"),
        (("load", "http://127.0.0.1:9", "--rate", "0"), "--rate: 0 is no rate"),
        (("load", "http://127.0.0.1:9", "--workload", "chat", "--trace", "x"), "not both"),
        (("check-config", "none.toml"), "none.toml: it cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(line: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run([*HEADWAY, *line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
