"""What we write for an engine is what its plug-in reads, and nothing is written for one that does not read it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.domain.engine_hints import EXPECTED_TOKENS, MAX_RANK
from headway.domain.estimate import PointEstimate
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.gateway.openai.found_fields import FoundFields
from headway.gateway.openai.request_body import LARGE_BYTES
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.openai.written_model import write_model
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.picked_request import picked_request
from headway.gateway.relay.upstream_request import engine_hints, upstream_parts, upstream_request
from headway.gateway.replicas.engine_figures import read_metrics
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings, TenantSettings
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.xargs_hints import XargsHints, read_hints
from tests.support.gateway_requests import gateway_request


def dispatched(
    body: object, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/v1/completions", **arrived: Any
) -> GatewayRequest:
    """A request at its dispatch, ten seconds after it came."""
    request = gateway_request(7, body, headers, path=path, **arrived)
    request.queued.estimate = PointEstimate(321, "test")
    request.queued.rank = 12
    request.queued.dispatched_at = 110.0
    return request


def replica(**settings: Any) -> UpstreamReplica:
    return UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1", **settings), HealthSettings(), lambda: 0.0)


def sent(one: GatewayRequest, to: UpstreamReplica) -> tuple[bytes, Any]:
    head, _, body = upstream_request(one, to).partition(b"\r\n\r\n")
    return head, json.loads(body)


def test_the_plug_in_reads_what_we_write() -> None:
    one = dispatched({"prompt": "x"}, tenant="team", session="s" * 200, deadline=112.5, priority=3)
    assert read_hints(engine_hints(one.queued, rank=True)) == XargsHints(321, 2.5, "team", "s" * 64, 12)
    one.queued.rank = 10**12
    assert read_hints(engine_hints(one.queued, rank=True)).rank == MAX_RANK
    one = dispatched({"prompt": "x"}, tenant="bad\x00name", deadline=50.0)
    assert read_hints(engine_hints(one.queued, rank=False)) == XargsHints(321, 0.0)


def test_deadlines_after_the_first_token_go_on_as_what_is_left_of_them() -> None:
    """It came at 100 s and goes on at 110 s."""
    later = LaterDeadlines(0.0625, 130.0, ProgramStage("task", 2, 5, 160.0))
    one = dispatched({"prompt": "x"}, later_deadlines=later)
    assert read_hints(engine_hints(one.queued, rank=True)).later == later.moved(-110.0)
    one = dispatched({"prompt": "x"}, later_deadlines=LaterDeadlines(end=50.0, program=ProgramStage("p")))
    assert read_hints(engine_hints(one.queued, rank=True)).later == LaterDeadlines(end=0.0, program=ProgramStage("p"))


def test_hints_go_only_where_they_are_read() -> None:
    one = dispatched(b'{"prompt":"x",  "odd": 1}')
    assert upstream_request(one, replica()).endswith(b'\r\n\r\n{"prompt":"x",  "odd": 1}')
    knows = replica()
    knows.reported(LoadReport(waiting=0, reads_hints=True))
    assert sent(one, knows)[1]["vllm_xargs"]["headway_rank"] == 12
    assert "vllm_xargs" not in sent(one, replica(hints="never"))[1]
    assert "vllm_xargs" in sent(one, replica(hints="always"))[1]
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):  # vLLM takes `vllm_xargs` on each
        assert sent(dispatched({"input": "x"}, path=path), knows)[1]["vllm_xargs"][EXPECTED_TOKENS] == 321
    embedding = dispatched({"input": "x"}, path="/v1/embeddings")
    assert sent(embedding, knows)[1] == {"input": "x"}


def test_a_client_cannot_write_hints_past_its_key() -> None:
    smuggled = {"headway_rank": -9, "headway_deadline_ms": 1, "headway_tenant": "boss", "mine": [1]}
    one = dispatched({"prompt": "x", "priority": -100, "vllm_xargs": smuggled}, tenant="team")
    body = sent(one, replica(hints="always"))[1]
    assert body["vllm_xargs"].pop("mine") == [1]
    assert read_hints(body["vllm_xargs"]) == XargsHints(321, None, "team", None, 12)
    assert body["priority"] == 0
    odd = dispatched({"prompt": "x", "vllm_xargs": "no object"})
    assert read_hints(sent(odd, replica(hints="always"))[1]["vllm_xargs"]).rank == 12


def test_a_priority_scheduler_gets_the_priority_with_its_sign_and_no_rank_beside_it() -> None:
    one = dispatched({"prompt": "x"}, priority=-2)
    assert sent(one, replica(priority="lower-first"))[1]["priority"] == -2
    assert sent(one, replica(priority="higher-first"))[1]["priority"] == 2
    both = sent(one, replica(priority="lower-first", hints="always"))[1]
    assert read_hints(both["vllm_xargs"]).rank is None
    assert both["priority"] == -2
    assert sent(dispatched({"query": "x"}, path="/v1/rerank"), replica(priority="lower-first"))[1]["priority"] == 0


def test_what_an_operator_adds_to_the_forwarded_paths_goes_out_as_it_came() -> None:
    one = dispatched({"lora_name": "x"}, path="/v1/load_lora_adapter", priority=-2)
    assert sent(one, replica(priority="lower-first"))[1] == {"lora_name": "x"}


def test_the_plug_ins_metrics_tell_that_it_is_there() -> None:
    text = "vllm:num_requests_waiting 0\n" + PluginMetrics("fcfs", "0").text()
    assert read_metrics(text) == LoadReport(waiting=0, reads_hints=True)
    assert not read_metrics("vllm:num_requests_waiting 0\n# headway_steps_total is not here").reads_hints


def test_the_load_header_is_asked_for_where_configured() -> None:
    one = dispatched({"prompt": "x"})
    assert b"endpoint-load-metrics-format" not in sent(one, replica())[0]
    assert b"\r\nendpoint-load-metrics-format: json\r\n" in sent(one, replica(load_header=True))[0]
    asked = dispatched({"prompt": "x"}, [(b"endpoint-load-metrics-format", b"text")])
    assert sent(asked, replica(load_header=True))[0].count(b"endpoint-load-metrics-format: text") == 1


def test_our_span_takes_the_place_of_the_clients() -> None:
    one = dispatched({"prompt": "x"}, [(b"traceparent", b"theirs"), (b"tracestate", b"kept")])
    assert b"traceparent: theirs" in sent(one, replica())[0]
    traced = dispatched({"prompt": "x"}, one.arrived.http.headers, traceparent=b"ours")
    head = sent(traced, replica())[0]
    assert b"traceparent: ours" in head
    assert b"theirs" not in head
    assert b"tracestate: kept" in head


TEAM = TenantSettings("team", key_env="KEY")
FORM = "multipart/form-data; boundary=b"
PART = '--b\r\ncontent-disposition: form-data; name="{}"\r\n\r\n{}\r\n'
LONG = "x" * (LARGE_BYTES + 1)
LARGE_BODIES: dict[str, tuple[bytes, str, str]] = {
    "JSON": (
        json.dumps({"prompt": LONG, "priority": -9, "vllm_xargs": {"headway_rank": 1}}).encode(),
        "",
        "completions",
    ),
    "odd JSON": (json.dumps({"n": 1.5, "query": LONG, "priority": -9, "model": "alias"}).encode(), "", "rerank"),
    "a form": (
        (PART.format("file", LONG) + PART.format("priority", -9) + PART.format("model", "alias") + "--b--").encode(),
        FORM,
        "audio/transcriptions",
    ),
}


@pytest.mark.parametrize(("content", "kind", "path"), LARGE_BODIES.values(), ids=LARGE_BODIES.keys())
def test_what_is_withheld_of_a_large_body_reaches_no_replica_sent_by_us_or_by_a_proxy(
    content: bytes, kind: str, path: str
) -> None:
    one = dispatched(content, [(b"content-type", kind.encode())], path=f"/v1/{path}")
    http, body = one.arrived.http, one.arrived.body
    http.fields = found = FoundFields()
    if body is None:
        list(found.look(http, lambda: True))
        write_model(http, "m")
    withhold(http, body, TEAM, 0)
    head, parts = upstream_parts(one, replica())
    sent_by_us = b"".join(parts)
    assert b"content-length: %d\r\n" % len(sent_by_us) in head
    assert b"-9" not in sent_by_us
    assert b"alias" not in sent_by_us
    assert b"headway_rank" not in sent_by_us
    assert len(sent_by_us) > LARGE_BYTES
    picked = picked_request(one, replica(), http.headers, http.target, reads_answer=False)
    assert b"".join(picked.body) == sent_by_us
    one.arrived.let_go_of_body()
    assert http.fields is None
