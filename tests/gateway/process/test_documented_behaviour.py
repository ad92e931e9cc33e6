"""Single sentences of the guide that need a whole gateway to hold."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from headway.gateway.settings import PolicySettings, QueueSettings, TenantSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import answers, streams, waits_for
from tests.support.serve_process import fetched, serving


@pytest.mark.parametrize("ordering", ["fcfs", "priced-work", "shortest-prompt-first", "fair-share/ewsjf", "random"])
def test_with_an_empty_queue_the_order_is_that_of_arrival_and_nobody_waits(
    run_gateway: RunGateway, ordering: str
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = []
        for number in range(20):
            prompt = f"{number} " + "x" * (4_000 - 190 * number)  # ever shorter: any other order would turn them round
            asking.append(asyncio.ensure_future(setup.ask(completion(prompt=prompt))))
            await setup.until(lambda: len(setup.replicas[0].calls) == number + 1)  # noqa: B023
        gate.set()
        await asyncio.gather(*asking)
        assert [str(call.json()["prompt"]).split()[0] for call in setup.replicas[0].calls] == [*map(str, range(20))]

    run_gateway(scenario, seats=32, policies=PolicySettings(ordering=ordering))


def test_who_is_turned_away_together_does_not_come_back_together(run_gateway: RunGateway) -> None:
    """The time to come back is the queue's drain, spread by a fifth to either side, and at most two minutes."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(3)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        line = next(iter(setup.dispatcher.queues.values()))

        async def told_ms(drain_seconds: float) -> list[int]:
            line.forecast._work, line.forecast._seconds = line.waiting_work * 10.0 / drain_seconds, 10.0
            found = [await setup.ask() for _ in range(12)]
            assert {answer.reason for answer in found} == {"queue-full"}
            return [int(answer.headers["retry-after-ms"]) for answer in found]

        ten = await told_ms(10.0)
        assert len(set(ten)) > 6
        assert 7_900 <= min(ten) < max(ten) < 120_000
        assert set(await told_ms(1_000.0)) == {120_000}
        gate.set()
        await asyncio.gather(*asking)

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=2))


def test_no_secret_and_no_text_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "the-secret-key-1")
    config = tmp_path / "gateway.toml"
    config.write_text('admin_listen = "127.0.0.1:0"\n[[tenant]]\nname = "team"\nkey_env = "TEAM_KEY"\n')

    async def ask(port: int, key: str) -> int:
        async with RawClient(port) as client:
            body = {"model": "llama-3.1-8b", "prompt": "a private prompt", "max_tokens": 2, "ignore_eos": True}
            await client.send(post(body, headers=f"authorization: Bearer {key}\r\n"))
            return (await client.answer()).status

    with serving("--config", config, "--log-requests") as (process, url):
        port = int(url.rpartition(":")[2])
        assert asyncio.run(ask(port, "a-wrong-secret-2")) == 401
        assert asyncio.run(ask(port, "the-secret-key-1")) == 200
        assert json.loads(fetched(url + "/metrics"))["error"]["code"] == "not_found", "metrics are not for the public"
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
    lines = [json.loads(line) for line in told.splitlines() if '"message": "request"' in line]
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.partition("## Access log")[2].partition("\n## ")[0]
    rows = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    (line,) = lines
    assert sorted(line) == sorted(rows)
    assert (line["tenant"], line["path"], line["status"], line["tries"]) == ("team", "/v1/completions", 200, 1)
    assert 0 <= line["waited_seconds"] <= line["first_byte_seconds"] <= line["seconds"]
    assert "secret" not in told
    assert "private" not in told


def test_a_deadline_that_passes_in_the_queue_costs_the_replica_nothing(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could foretell it: nothing was known yet of how fast the queue moves."""
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        key = "authorization: Bearer team-key-1\r\n"
        running = asyncio.ensure_future(setup.ask(headers=key + "x-llm-d-slo-ttft-ms: 200\r\n"))
        await setup.until(lambda: setup.replicas[0].inside == 1)
        late = await setup.ask(headers=key + "x-llm-d-slo-ttft-ms: 200\r\n")
        assert (late.status, late.reason) == (429, "deadline-unmeetable")
        assert "was wanted within 0.20 s" in late.json()["error"]["message"]
        gate.set()
        assert (await running).status == 200, "who was sent is served"
        assert len(setup.replicas[0].calls) == 1

    tenant = TenantSettings(name="team", key_env="TEAM_KEY", may=("deadline",))
    run_gateway(scenario, seats=1, tenant=(tenant,))


@pytest.mark.parametrize("over_seconds", [0.0, 0.5])
def test_a_deadline_holds_for_who_waits_a_second_time(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, over_seconds: float
) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        gate, never, headers = asyncio.Event(), asyncio.Event(), "authorization: Bearer team-key-1\r\n"
        for one in setup.replicas:
            one.usual = waits_for(never, streams())
        setup.replicas[0].next.append(waits_for(gate, answers(500, {})))
        tight = asyncio.ensure_future(setup.ask(headers=headers + "x-llm-d-slo-ttft-ms: 300\r\n"))
        await setup.until(lambda: setup.replicas[0].inside == 1)
        other = asyncio.ensure_future(setup.ask(headers=headers))
        await setup.until(lambda: setup.replicas[1].inside == 1)
        await asyncio.sleep(over_seconds)
        gate.set()  # the first one fails, and has to wait for the place that the other one holds
        late = await tight
        assert (late.status, late.reason) == (429, "deadline-unmeetable")
        never.set()
        assert (await other).status == 200

    tenant = TenantSettings(name="team", key_env="TEAM_KEY", may=("deadline",))
    routing = PolicySettings(ordering="fcfs", routing="round-robin")
    run_gateway(scenario, replicas=2, seats=1, tenant=(tenant,), policies=routing)


def test_the_why_is_found_by_any_id_a_client_may_choose(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for name in ("Root=1-67;a/b:c+d", "with space", "käse", "50%25"):
            await setup.ask(headers=f"x-request-id: {name}\r\n")
            told = (await setup.get(f"/headway/why?id={quote(name, safe='')}")).json()
            assert (told["id"], told["outcome"]) == (name, "completed")

    run_gateway(scenario)


def test_one_model_is_told_of_from_all_replicas_lists(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[1].models = ("org/other",)
        setup.gateway.reload(replace(setup.settings, replica=setup.settings.replica[:1]))
        setup.gateway.reload(setup.settings)
        await setup.until(lambda: all(one.is_up for one in setup.dispatcher.replicas))
        for name in ("m", "org/other", "org%2Fother"):
            assert (await setup.get(f"/v1/models/{name}")).json()["id"] == name.replace("%2F", "/")
        missing = await setup.get("/v1/models/none")
        assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert not setup.replicas[0].calls

    run_gateway(scenario, replicas=2)


def test_what_is_no_post_needs_no_body(run_gateway: RunGateway) -> None:
    """A browser asks for permission (CORS) before it sends anything; whether it gets it is the replica's to say."""

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        async with RawClient(setup.port) as client:
            await client.send(b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://a\r\n\r\n")
            assert (await client.head())[0] == 200
        assert [call.method for call in setup.replicas[0].calls] == ["OPTIONS"]

    run_gateway(scenario)


def test_the_why_of_a_wait_is_told(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = []
        for name, size in (("first", 10), ("long", 4_000), ("short", 10), ("brief", 12), ("late", 5_000)):
            body, inside = completion(prompt="x" * size), setup.dispatcher.counts.inside
            asking.append(asyncio.ensure_future(setup.ask(body, headers=f"x-request-id: {name}\r\n")))
            await setup.until(lambda: setup.dispatcher.counts.inside == inside + 1)  # noqa: B023
        gate.set()
        await asyncio.gather(*asking)

        async def why(name: str) -> str:
            told = await setup.get(f"/headway/why?id={name}")
            return str(told.json()["why"])

        assert await why("first") == "did not wait"
        assert (await why("long")).endswith("s for 2 that came later but rank sooner by shortest-prompt-first")
        assert (await why("late")).endswith("s for 3 that came before it")
        assert (await why("short")).endswith("s for room at a replica")
        assert (await setup.get("/headway/why?id=nobody")).status == 404

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="shortest-prompt-first"))


def test_a_missing_key_and_a_foreign_method_are_told_what_would_do(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        refused = await setup.ask()
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="headway"')
        assert "`Authorization: Bearer KEY`" in refused.json()["error"]["message"]
        async with RawClient(setup.port) as client:
            await client.send(b"PUT /v1/files HTTP/1.1\r\nhost: a\r\nauthorization: Bearer team-key-1\r\n\r\n")
            answer = await client.answer()
        assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, POST")

    run_gateway(scenario, tenant=(TenantSettings(name="team", key_env="TEAM_KEY"),))


def test_a_key_in_either_header_counts_and_goes_to_no_replica(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        for headers in (
            "x-api-key: team-key-1\r\n",
            "authorization: Bearer team-key-1\r\nx-api-key: team-key-1\r\n",
        ):
            assert (await setup.ask(headers=headers)).status == 200
        for call in setup.replicas[0].calls:
            assert not {"x-api-key", "authorization"} & set(call.headers)
        assert (await setup.ask(headers="x-api-key: guessed-key\r\n")).status == 401

    run_gateway(scenario, seats=4, tenant=(TenantSettings(name="team", key_env="TEAM_KEY"),))


def test_a_replica_that_is_full_for_everybody_is_seen_in_the_metrics(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = setup.replicas[1].usual = answers(503)
        for _ in range(3):
            assert (await setup.ask()).status == 503
        metrics = setup.gateway._metrics.text().decode()
        refusals = re.findall(r"^headway_replica_refusals_total\{.*\} (\d+)", metrics, re.MULTILINE)
        assert [int(number) for number in refusals] == [3, 3]
        assert 'headway_request_retries_total{reason="refused"} 3.0' in metrics
        assert re.findall(r"^headway_replica_failures_total\{.*\} (\d+)", metrics, re.MULTILINE) == ["0", "0"]

    run_gateway(scenario, replicas=2)


def test_whoever_is_not_let_in_is_counted_by_reason(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")

    async def scenario(setup: Setup) -> None:
        key = "authorization: Bearer team-key-1\r\n"
        assert (await setup.ask(headers="authorization: Bearer guessed\r\n")).status == 401
        async with RawClient(setup.port) as client:
            await client.send(post(b"{", "/v1/completions", key))
            assert (await client.answer()).status == 400
        async with RawClient(setup.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
            assert (await client.answer()).status == 400
        assert (await setup.ask(headers=key)).status == 200
        metrics = setup.gateway._metrics.text().decode()
        assert 'headway_rejected_requests_total{status="401",reason="unauthorised"} 1.0' in metrics
        assert 'headway_rejected_requests_total{status="400",reason="malformed"} 2.0' in metrics
        assert setup.dispatcher.counts.arrived == 1

    run_gateway(scenario, tenant=(TenantSettings(name="team", key_env="TEAM_KEY"),))
