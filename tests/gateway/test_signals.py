"""What replicas say of themselves on the way, and what is told to them: over real sockets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.gateway.settings import ReplicaSettings
from headway.vllm_plugin.hints import read_hints
from headway.vllm_plugin.metrics import Metrics

from .conftest import Play, Stage
from .scripted_replica import Call, text


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
def test_the_load_header_is_asked_for_read_and_kept_from_clients_who_did_not_ask(play: Play, value: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.replicas[0].usual = telling(value)  # type: ignore[assignment]
        assert (await stage.ask()).status == 200
        assert not stage.brain.replicas[0].ages_seconds()  # not asked for
        settings = ReplicaSettings(url=stage.replicas[0].url, name="again", load_header=True)
        stage.gateway.reload(replace(stage.settings, replica=(settings,)))
        replica = stage.brain.replicas[0]
        await stage.until(lambda: replica.is_up)
        answer = await stage.ask()
        assert "endpoint-load-metrics" not in answer.headers
        assert (replica.state.report.waiting, replica.state.report.kv_share) == (40, 0.5)
        assert set(replica.ages_seconds()) == {"waiting", "kv_share"}
        metrics = (await stage.get("/metrics")).body.decode()
        assert 'headway_replica_report_age_seconds{replica="again",signal="waiting"}' in metrics
        asked = await stage.ask(headers="endpoint-load-metrics-format: text\r\n")
        assert asked.headers["endpoint-load-metrics"] == value

    play(scene)


def test_an_engine_with_our_plug_in_is_told_what_we_know(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.until(lambda: stage.brain.replicas[0].reads_hints)
        for number in range(1, 4):
            assert (await stage.ask(headers="x-session-id: s1\r\n")).status == 200
            hints = read_hints(stage.replicas[0].calls[-1].json()["vllm_xargs"])
            assert (hints.rank, hints.session, hints.ignored) == (number, "s1", ())
            assert hints.expected_tokens is not None

    play(scene, metrics="vllm:num_requests_waiting 0\n" + Metrics("priority", "0").text())
