"""A request as spans, read with the SDK's own exporter in memory: caller's context in, ours on to the replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from headway.gateway.observing.tracing import check_tracing
from headway.gateway.settings import TracingSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import dies_at_once, hangs, streams, waits_for

ON = TracingSettings(endpoint="http://127.0.0.1:4318/v1/traces")
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{}"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("headway.gateway.observing.tracing._sending", lambda settings: SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def told(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = exporter.get_finished_spans()
    assert len({span.name for span in found}) == len(found), "one of each, in these tests"
    return {span.name: span for span in found}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_is_three_spans_under_its_callers(run_gateway: RunGateway, spans: InMemorySpanExporter) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        before = asyncio.ensure_future(setup.ask(headers=f"traceparent: {CALLER.format('00')}\r\n"))
        await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        body = completion(prompt="a secret " * 20)
        traced = asyncio.ensure_future(setup.ask(body, headers=f"traceparent: {CALLER.format('01')}\r\n"))
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        await asyncio.sleep(0.15)
        gate.set()
        await asyncio.gather(before, traced)
        one, two = (call.headers["traceparent"] for call in setup.replicas[0].calls)
        assert one == CALLER.format("00"), "its caller does not trace: it goes on as it came"
        found = told(spans)
        whole, queue, replica = found["text_completion"], found["queue"], found["replica"]
        assert whole.parent is not None
        assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
        assert whole.context is not None
        assert two == f"00-0af7651916cd43dd8448eb211c80319c-{whole.context.span_id:016x}-01"
        for child in (queue, replica):
            assert child.parent is not None
            assert child.parent.span_id == whole.context.span_id
        assert (whole.kind, replica.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
        assert seconds(queue) >= 0.15
        assert seconds(whole) == pytest.approx(seconds(queue) + seconds(replica), abs=0.01)
        assert [event.name for event in replica.events] == ["first byte"]
        said = dict(whole.attributes or {})
        expected = {"gen_ai.request.model": "m", "gen_ai.usage.output_tokens": 3, "headway.outcome": "completed"}
        assert said == said | expected | {"headway.waiting_at_arrival": 0, "http.response.status_code": 200}
        assert "secret" not in str([span.to_json() for span in found.values()])

    run_gateway(scenario, seats=1, tracing=ON)


def test_failures_and_second_tries_show(run_gateway: RunGateway, spans: InMemorySpanExporter) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = dies_at_once
        assert (await setup.ask()).status == 502
        found = spans.get_finished_spans()
        assert sorted(span.name for span in found) == ["queue", "replica", "replica", "text_completion"]
        whole = found[-1]
        assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "replica-failed")
        assert {(span.attributes or {}).get("headway.replica") for span in found if span.name == "replica"} == {
            "r0",
            "r1",
        }

    run_gateway(scenario, replicas=2, tracing=ON)


def test_whoever_leaves_ends_its_span_too(run_gateway: RunGateway, spans: InMemorySpanExporter) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with RawClient(setup.port) as client:
            await client.send(post(completion(model="m")))
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert (told(spans)["text_completion"].attributes or {})["headway.outcome"] == "cancelled"
        assert not setup.gateway._tracing._open  # type: ignore[union-attr]

    run_gateway(scenario, tracing=ON)


@pytest.mark.parametrize(("share", "traced"), [(0.0, 0), (1.0, 3)])
def test_who_comes_without_a_decision_is_sampled(
    run_gateway: RunGateway, spans: InMemorySpanExporter, share: float, traced: int
) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await setup.ask(headers="traceparent: nonsense\r\n")).status == 200
        assert len(spans.get_finished_spans()) == traced

    run_gateway(scenario, tracing=TracingSettings(endpoint=ON.endpoint, sample_share=share))


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"tracing\.sample_share must be from 0 to 1, got 2"):
        check_tracing(TracingSettings(sample_share=2.0))
    with pytest.raises(ValueError, match=r"tracing\.endpoint must be like http://127\.0\.0\.1:4318/v1/traces"):
        check_tracing(TracingSettings(endpoint="127.0.0.1:4318"))
