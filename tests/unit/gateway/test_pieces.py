"""The gateway's pure parts, each by hand or against brute force."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.gateway.api_keys import ApiKeys
from headway.gateway.observing.gateway_metrics import LABEL_VALUES_MAX, BoundedLabels
from headway.gateway.openai.client_hints import ClientHints, read_hints
from headway.gateway.openai.error_responses import Reason, error_response, retry_headers
from headway.gateway.openai.request_body import prefix_hashes, read_body, why_unreadable, with_fields, with_usage_asked
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.openai.usage import JsonUsageReader, StreamUsageReader, Usage
from headway.gateway.queueing.counts import Counts, Outcome
from headway.gateway.queueing.wait_forecast import WaitForecast
from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit
from headway.gateway.replicas.in_flight import InFlight
from headway.gateway.replicas.load_report import LoadReport, read_load_header, read_metrics
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import HttpRequest


def request(number: int, prompt: int = 100, output: int = 10) -> Request:
    made = Request(number, 0.0, prompt)
    made.estimate = PointEstimate(output, "test")
    return made


# Usage in a stream

EVENTS = [
    b'data: {"choices":[{"text":"a \\"usage\\": no"}]}\n\n',
    b": a comment\n\n",
    b'data: {"choices":[{"text":"b"}],"usage":null}\n\n',
    b'data: {"choices":[{"text":"c"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n',
    b'data: not json "usage": {\n\n',
    b"event: x\r\ndata: {}\r\n\r\n",
]
TOLD = b'{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}'
LAST = b'data: {"choices":[],"usage":' + TOLD + b"}\n\n"
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.sampled_from(EVENTS), max_size=6), st.lists(st.integers(0, 2_000), max_size=10), st.booleans())
def test_only_the_usage_chunk_is_taken_out_however_the_stream_is_cut(
    events: list[bytes], cuts: list[int], hide: bool
) -> None:
    stream = b"".join(events) + LAST + DONE
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    watch = StreamUsageReader(hide_usage=hide)
    pieces = [stream[a:b] for a, b in pairwise(places)]
    passed = b"".join(watch.pass_on(piece) for piece in pieces) + watch.rest()
    assert passed == b"".join(events) + (b"" if hide else LAST) + DONE
    assert watch.usage == Usage(3, 4, 2)


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    watch = StreamUsageReader(hide_usage=True)
    passed = sum(len(watch.pass_on(b'"usage":' + b"x" * 100_000)) for _ in range(20))
    assert passed + len(watch.rest()) == 20 * 100_008
    assert passed > 10 * 100_008


def test_json_usage_is_read_at_the_end_unless_too_long() -> None:
    watch = JsonUsageReader()
    body = json.dumps({"choices": [1], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    assert watch.pass_on(body[:10]) + watch.pass_on(body[10:]) + watch.rest() == body
    assert watch.usage == Usage(5, 6, 0)
    long = JsonUsageReader()
    for _ in range(50):
        long.pass_on(b"x" * 100_000)
    long.rest()
    assert long.usage is None
    assert not long._pieces


# Bodies


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.floats() | st.text(max_size=5), st.lists)))
def test_setting_a_field_changes_no_other(content: dict[str, object]) -> None:
    if any(isinstance(value, float) and not math.isfinite(value) for value in _leaves(content)):
        return
    before = json.dumps(content).encode()
    after = json.loads(with_fields(before, {"priority": 3}))
    assert after == {**json.loads(before), "priority": 3}


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict | list):
        return [leaf for one in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(one)]
    return [value]


def test_bodies_are_read_or_refused() -> None:
    body = read_body(b'{"model":"m","max_tokens":5,"max_completion_tokens":7,"messages":[1, 2],"odd":{"x":1}}')
    assert body is not None
    assert (body.output_tokens_max, body.prompt_bytes) == (7, b"[1, 2]")
    for bad in (b"[1]", b"{", b'{"model":1}', b'{"stream":"yes"}', b"\xff", b'{"max_tokens":1.5}', b"[" * 100_000):
        assert read_body(bad) is None
        assert why_unreadable(bad).startswith(("the body is not a valid JSON object: ", "the body is nested"))
    assert why_unreadable(b'{"max_tokens":1.5}').endswith("Expected `int | null`, got `float` - at `$.max_tokens`")
    lenient = read_body(
        b'{"model":"m","max_tokens":"100","n":2.0,"stream":"true","stream_options":{"include_usage":1}}'
    )
    assert lenient is not None
    assert (lenient.output_tokens_max, lenient.stream) == (100, True)
    assert with_usage_asked(b'{"stream_options":{"a":1}}') == {"stream_options": {"a": 1, "include_usage": True}}


def test_prefixes_hash_alike_as_far_as_they_are_alike() -> None:
    one, two = prefix_hashes("m", b"a" * 5_000), prefix_hashes("m", b"a" * 3_000 + b"b" * 2_000)
    assert len(one) == 4
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert prefix_hashes("other", b"a" * 5_000)[0] != one[0]
    assert prefix_hashes("m", b"short") == []
    assert len(prefix_hashes("m", b"a" * 1_000_000)) == 32


# Hints


def hints(headers: dict[str, str], body: object = None, **may: object) -> ClientHints:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    read = read_body(json.dumps(body).encode()) if body is not None else None
    tenant = TenantSettings(name="t", key_env="X", **may)  # type: ignore[arg-type]
    return read_hints(HttpRequest(b"POST", b"/", lines), read, tenant)


ALL = ("priority", "deadline", "fairness-id", "session", "output-tokens")
SAID = {
    "x-request-priority": "-7",
    "x-llm-d-slo-ttft-ms": "250",
    "x-llm-d-inference-fairness-id": "team",
    "session_id": "s1",
    "x-headway-output-tokens": "40",
}


def test_hints_are_heard_only_as_far_as_the_key_allows() -> None:
    assert hints(SAID, may=()) == ClientHints()
    assert hints(SAID, may=ALL, priority_min=-3) == ClientHints(-3, 0.25, "team", "s1", 40)
    assert hints(SAID, may=("deadline",), deadline_seconds_min=1.0) == ClientHints(deadline_seconds=1.0)


def test_hints_by_their_other_names_and_signs() -> None:
    nested = {"nvext": {"agent_hints": {"priority": 4, "osl": 90}}}
    assert hints({}, nested, may=ALL, priority_min=-9) == ClientHints(priority=-4, output_tokens=90)
    assert hints({"x-dynamo-request-priority": "-2"}, may=ALL).priority == 2
    assert hints({"x-claude-code-session-id": "c", "session-id": "s"}, may=ALL).session == "c"
    assert hints({}, {"priority": 5}, may=ALL).priority == 5


def test_numbers_of_any_length_are_heard_or_not_and_never_raise() -> None:
    endless = 10**400
    assert hints({}, {"nvext": {"agent_hints": {"priority": endless, "osl": endless}}}, may=ALL) == ClientHints()
    assert hints({}, {"priority": endless}, may=ALL).priority == 100


def test_sessions_and_objectives_by_their_other_names() -> None:
    context = {"nvext": {"agent_context": {"session_id": "run", "trajectory_id": "run:coder"}}}
    assert hints({}, context, may=ALL).session == "run:coder"
    assert hints({"x-dynamo-session-id": "d"}, context, may=ALL).session == "d"
    assert hints({}, {"nvext": {"agent_context": {"session_id": "run"}}}, may=("session",)).session == "run"
    assert hints({}, context, may=("priority",)).session is None
    for odd in (5, [1], {"agent_context": 3, "agent_hints": "x"}, {"agent_context": {"session_id": 4}}):
        assert hints({}, {"nvext": odd}, may=ALL) == ClientHints()

    def objective(name: str, *may: str) -> int:
        tenant = TenantSettings(name="t", key_env="X", may=may, priority_min=-5)
        request = HttpRequest(b"POST", b"/", [(b"x-llm-d-inference-objective", name.encode())])
        return read_hints(request, None, tenant, {"chat": 3, "batch": -50, "root": 99}).priority

    assert [objective(name, "priority") for name in ("chat", "batch", "root", "other", "")] == [-3, 50, -5, 0, 0]
    assert objective("chat", "session") == 0


@given(st.dictionaries(st.sampled_from(sorted(SAID)), st.text(st.characters(codec="latin-1"), max_size=300)))
def test_nonsense_is_as_if_unsaid(headers: dict[str, str]) -> None:
    lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    tenant = TenantSettings(name="t", key_env="X", may=ALL)
    found = read_hints(HttpRequest(b"POST", b"/", lines), None, tenant)
    assert tenant.priority_min <= found.priority <= tenant.priority_max
    assert found.deadline_seconds is None or 0.1 <= found.deadline_seconds <= 86_400
    assert found.output_tokens is None or found.output_tokens >= 1
    assert found.session is None or len(found.session) <= 128


# Reports


def test_metrics_of_every_engine_are_read() -> None:
    vllm = (
        "# TYPE vllm:num_requests_waiting gauge\n"
        'vllm:num_requests_waiting{engine="0"} 3.0\nvllm:num_requests_waiting{engine="1"} 4.0\n'
        'vllm:num_requests_running{engine="0"} 5.0\nvllm:gpu_cache_usage_perc{engine="0"} 0.25\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0\n'
    )
    assert read_metrics(vllm) == LoadReport(7, 5, 0.25, 16_000)
    sglang = (
        "sglang:num_queue_reqs 2\nsglang:num_running_reqs 9\nsglang:token_usage 0.5\nsglang:max_total_num_tokens 800\n"
    )
    assert read_metrics(sglang) == LoadReport(2, 9, 0.5, 800)
    trtllm = "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.75\n"
    assert read_metrics(trtllm) == LoadReport(1, 2, 0.75, None)
    triton = (
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3\n'
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 4\n'
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.5\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 900\n'
    )
    assert read_metrics(triton) == LoadReport(3, 4, 0.5, None)
    assert read_metrics("vllm:num_requests_waiting NaN\nvllm:num_requests_running x\nother 1") == LoadReport()
    assert read_metrics("vllm:num_requests_waiting +Inf\nsglang:max_total_num_tokens Inf") == LoadReport()


@pytest.mark.parametrize(
    ("value", "report"),
    [
        (b'JSON {"named_metrics":{"kv_cache_usage_perc":0.4,"num_requests_waiting":2}}', LoadReport(2, None, 0.4)),
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0",
            LoadReport(2, None, 0.4),
        ),
        (b"JSON {", None),
        (b"JSON []", None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1e999,"kv_cache_usage_perc":0.4}}', LoadReport(kv_share=0.4)),
        (b'JSON {"named_metrics":{"num_requests_waiting":NaN}}', None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1' + b"0" * 400 + b"}}", None),
        (b"JSON " + b"[" * 100_000, None),
        (b"TEXT named_metrics.num_requests_waiting=1e999", None),
        (b"TEXT named_metrics.num_requests_waiting=-3", None),
        (b"cpu_utilization=0.1", None),
    ],
)
def test_load_headers(value: bytes, report: LoadReport | None) -> None:
    assert read_load_header(value) == report


@given(st.text(max_size=200))
def test_reports_never_raise(text: str) -> None:
    read_metrics("vllm:" + text)
    read_load_header(text.encode("latin-1", "replace"))


# Books, limits, forecasts


@given(st.lists(st.tuples(st.sampled_from("efrl"), st.integers(0, 5)), max_size=40))
def test_the_ledgers_sums_are_those_of_who_is_inside(steps: list[tuple[str, int]]) -> None:
    ledger, inside, first = InFlight("r"), {}, set()  # type: ignore[var-annotated]
    for what, number in steps:
        if what == "e" and number not in inside:
            inside[number] = request(number, 100 + number, 10)
            ledger.enter(inside[number])
        elif what == "f" and number in inside:
            ledger.first_token(inside[number])
            first.add(number)
        elif what == "l" and number in inside:
            ledger.leave(inside.pop(number))
            first.discard(number)
        elif what == "r":
            for one in inside.values():
                one.produced_tokens = 4
            ledger.refresh()
        assert ledger.requests == len(inside)
        assert ledger.prefill_tokens == sum(r.prompt_tokens for n, r in inside.items() if n not in first)
    ledger.refresh()
    left = sum(10 - r.produced_tokens for r in inside.values())
    assert ledger.decode_tokens == pytest.approx(left)
    assert ledger.kv_tokens == sum(ledger.kv_need(r) for r in inside.values())


def test_the_limit_grows_while_it_is_used_and_backs_off_at_most_once_a_second() -> None:
    limit = ConcurrencyLimit()
    start = limit.requests_max
    limit.answered(1, None, 0.0)
    assert limit.requests_max == start
    for _ in range(10):
        limit.answered(limit.requests_max, None, 0.0)
    assert limit.requests_max == start + 10
    limit.congested(40, 1.0)
    limit.congested(40, 1.5)
    assert limit.requests_max == 36
    for _ in range(37):
        limit.answered(36, None, 3.0)
    assert limit.requests_max == 37
    for at in range(200):
        limit.congested(0, 10.0 + 2 * at)
    assert limit.requests_max == 1
    assert ConcurrencyLimit(fixed=5).requests_max == 5


def test_without_reports_a_swollen_time_to_first_byte_is_congestion() -> None:
    limit = ConcurrencyLimit()
    for _ in range(10):
        limit.answered(limit.requests_max, 1.0, 0.0)
    grown = limit.requests_max
    limit.answered(grown, 4.0, 5.0)
    assert limit.requests_max == grown + 1
    limit.answered(grown, 6.0, 6.0)
    assert limit.requests_max == int(0.9 * grown)


def test_the_forecast_is_the_work_ahead_over_the_rate_it_leaves_at() -> None:
    forecast = WaitForecast()
    assert forecast.wait_seconds(request(0), 500.0) is None
    forecast.backlog(True, 0.0)
    for second in range(1, 11):
        forecast.dispatched(100.0, float(second))
    assert forecast.rate() == pytest.approx(100.0, rel=0.1)
    assert forecast.wait_seconds(request(0), 500.0) == pytest.approx(5.0, rel=0.1)
    forecast.backlog(False, 10.0)
    rate = forecast.rate()
    forecast.dispatched(9e9, 500.0)  # nobody waited: says nothing of how fast a queue drains
    assert forecast.rate() == rate


def test_what_a_length_class_waits_is_learnt() -> None:
    forecast = WaitForecast()
    forecast.backlog(True, 0.0)
    forecast.dispatched(1_000.0, 10.0)
    for _ in range(100):
        forecast.waited(request(0, 50), 10.0, 1.0)
    assert forecast.wait_seconds(request(1, 60), 1_000.0) == pytest.approx(1.0, rel=0.1)
    assert forecast.wait_seconds(request(2, 5_000), 1_000.0) == pytest.approx(10.0, rel=0.1)


def test_tokens_from_bytes_are_calibrated_by_model() -> None:
    ratio = TokenRatio()
    assert ratio.tokens("m", 400) == 100
    for _ in range(200):
        ratio.learn("m", 10_000, 5_000)
    assert ratio.tokens("m", 400) == 200
    assert ratio.tokens("other", 400) == 100
    assert ratio.tokens("m", 0) == 1


def test_counts_end_everybody_once() -> None:
    counts = Counts()
    counts.arrive()
    counts.end(Outcome.REFUSED, Reason.QUEUE_FULL)
    assert counts.is_conserved()
    with pytest.raises(AssertionError, match="ended twice"):
        counts.end(Outcome.COMPLETED)


def test_label_values_are_bounded() -> None:
    bounded = BoundedLabels()
    assert {bounded(str(n)) for n in range(LABEL_VALUES_MAX + 50)} == {*map(str, range(LABEL_VALUES_MAX)), "other"}


# Errors and keys


@pytest.mark.parametrize(
    ("seconds", "after", "ms"), [(0.2, b"1", b"200"), (3.0001, b"4", b"3001"), (9e9, b"120", b"120000")]
)
def test_retry_headers(seconds: float, after: bytes, ms: bytes) -> None:
    assert retry_headers(seconds) == [(b"retry-after", after), (b"retry-after-ms", ms)]


def test_errors_have_openais_shape() -> None:
    for reason in Reason:
        error = json.loads(error_response(429, "m", reason).body)["error"]
        assert set(error) == {"message", "type", "param", "code"}


def test_keys_tell_tenants_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("ONE", "first-key-1")
    monkeypatch.setenv("TWO", "second-key-2")
    one, two = TenantSettings(name="one", key_env="ONE"), TenantSettings(name="two", key_env="TWO")
    tenants = ApiKeys([one, two])
    assert tenants.who(b"Bearer second-key-2") is two
    assert tenants.who(b"bearer  first-key-1 ") is one
    for wrong in (None, b"", b"Bearer", b"Bearer first", b"Basic first-key-1", b"first-key-1"):
        assert tenants.who(wrong) is None
    with pytest.raises(ValueError, match="'one' and 'again' have the same key"):
        ApiKeys([one, TenantSettings(name="again", key_env="ONE")])
    monkeypatch.setenv("ONE", "short")
    with pytest.raises(ValueError, match="no key of 8 characters") as told:
        ApiKeys([one])
    assert "short" not in str(told.value)
