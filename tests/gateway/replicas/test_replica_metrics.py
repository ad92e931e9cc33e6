"""What replicas say of themselves on the way, and what is told to them: over real sockets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from headway.gateway.settings import PolicySettings, ReplicaSettings
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.xargs_hints import read_hints
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers, text, waits_for


def telling(value: str) -> object:
    async def script(call: Call) -> None:
        extra = f"endpoint-load-metrics: {value}\r\n" if "endpoint-load-metrics-format" in call.headers else ""
        await call.head(extra=extra)
        await call.event(text("t0 "))
        await call.send(b"0\r\n\r\n")

    return script


@pytest.mark.parametrize(
    "value",
    [
        'JSON {"named_metrics": {"num_requests_waiting": 40, "kv_cache_usage_perc": 0.5}}',
        "TEXT named_metrics.num_requests_waiting=40, named_metrics.kv_cache_usage_perc=0.5",
    ],
)
def test_the_load_header_is_asked_for_read_and_kept_from_clients_who_did_not_ask(
    run_gateway: RunGateway, value: str
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = telling(value)  # type: ignore[assignment]
        assert (await setup.ask()).status == 200
        assert not setup.dispatcher.replicas[0].ages_seconds()  # not asked for
        settings = ReplicaSettings(url=setup.replicas[0].url, name="again", load_header=True)
        setup.gateway.reload(replace(setup.settings, replica=(settings,)))
        replica = setup.dispatcher.replicas[0]
        await setup.until(lambda: replica.is_up)
        answer = await setup.ask()
        assert "endpoint-load-metrics" not in answer.headers
        assert (replica.state.report.waiting, replica.state.report.kv_share) == (40, 0.5)
        assert set(replica.ages_seconds()) == {"waiting", "kv_share"}
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_replica_report_age_seconds{replica="again",signal="waiting"}' in metrics
        asked = await setup.ask(headers="endpoint-load-metrics-format: text\r\n")
        assert asked.headers["endpoint-load-metrics"] == value

    run_gateway(scenario)


def test_an_engine_with_our_plug_in_is_told_what_we_know(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.until(lambda: setup.dispatcher.replicas[0].reads_hints)
        for number in range(1, 4):
            assert (await setup.ask(headers="x-session-id: s1\r\n")).status == 200
            hints = read_hints(setup.replicas[0].calls[-1].json()["vllm_xargs"])
            assert (hints.rank, hints.session, hints.ignored) == (number, "s1", ())
            assert hints.expected_tokens is not None

    run_gateway(scenario, metrics="vllm:num_requests_waiting 0\n" + PluginMetrics("priority", "0").text())


def test_a_long_prompt_is_counted_before_it_queues_and_its_client_may_leave_meanwhile(
    run_gateway: RunGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr("headway.gateway.openai.prompt_count.WAIT_SECONDS", 30.0)

    async def scenario(setup: Setup) -> None:
        assert (await setup.ask(completion(prompt="a b c " * 1_000))).status == 200
        assert setup.gateway.site.history.requests[-1]["prompt_tokens"] == 3_000
        async with RawClient(setup.port) as client:
            await client.send(post(completion(prompt="a b c " * 80_000)))
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert setup.dispatcher.counts.ended["cancelled"] + setup.dispatcher.counts.ended["completed"] == 2
        await asyncio.sleep(0.3)  # the thread ends, and finds nobody

    run_gateway(scenario, tokenizers={"m": str(tmp_path / "tokenizer.json")})


def test_a_long_prompt_that_is_mostly_cached_does_not_wait_as_a_long_one(run_gateway: RunGateway) -> None:
    """The turn of a session whose cache was confirmed goes before a shorter prompt that has to be computed whole."""

    async def scenario(setup: Setup) -> None:
        cached = {"prompt_tokens": 1_000, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 995}}
        setup.replicas[0].usual = answers(200, {"choices": [], "usage": cached})
        for _ in range(40):
            await setup.ask(completion(prompt="s" * 4_000, stream=False), headers="x-session-id: s\r\n")
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, answers())
        asking = [asyncio.ensure_future(setup.ask(completion(prompt="first", stream=False)))]
        await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        asking.append(asyncio.ensure_future(setup.ask(completion(prompt="m" * 2_000, stream=False))))
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        turn = completion(prompt="s" * 4_000, stream=False)
        asking.append(asyncio.ensure_future(setup.ask(turn, headers="x-session-id: s\r\n")))
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        gate.set()
        await asyncio.gather(*asking)
        assert [str(call.json()["prompt"])[0] for call in setup.replicas[0].calls[-2:]] == ["s", "m"]

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="shortest-uncached-prefill-first"))
