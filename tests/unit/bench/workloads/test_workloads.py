"""Built-in workloads are what their docstrings say: deterministic, valid, and near the figures they cite."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from headway.bench.traces.describing import TraceDescription, describe
from headway.bench.user_mistake import UserMistake
from headway.bench.workloads import WORKLOADS
from headway.bench.workloads.client_mixes import population
from headway.bench.workloads.coding_agents import PROMPT_MAX, SYSTEM_TOKENS
from headway.bench.workloads.workload import draw_arrivals, draw_from_quantiles, stream
from headway.simulator.trace import Trace

CONTEXT = 131_072  # of the models the simulator has


def bytes_of(trace: Trace) -> bytes:
    columns = (trace.arrived_seconds, trace.prompt_tokens, trace.output_tokens, trace.tenant, trace.session)
    return b"".join(column.tobytes() for column in columns if column is not None) + repr(trace.tenants).encode()


@pytest.fixture(scope="module")
def described() -> dict[str, TraceDescription]:
    return {name: describe(workload.generate(20_000, 0)) for name, workload in WORKLOADS.items()}


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("requests", [1, 2, 777])
def test_valid(name: str, requests: int) -> None:
    trace = WORKLOADS[name].generate(requests, 3)
    assert trace.name == name
    assert len(trace) == requests
    for column in (trace.prompt_tokens, trace.output_tokens):
        assert len(column) == requests
        assert column.dtype == np.int64
        assert column.min() >= 1
    assert trace.arrived_seconds[0] == 0
    assert (np.diff(trace.arrived_seconds) >= 0).all()
    assert (trace.prompt_tokens + trace.output_tokens).max() <= CONTEXT
    if trace.tenant is not None:
        assert set(trace.tenant) == set(range(len(trace.tenants)))
    if trace.prefix_ids is not None:
        assert [len(row) for row in trace.prefix_ids] == (-(-trace.prompt_tokens // 512)).tolist()


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(name: str) -> None:
    workload = WORKLOADS[name]
    assert bytes_of(workload.generate(500, 5)) == bytes_of(workload.generate(500, 5))
    assert bytes_of(workload.generate(500, 5)) != bytes_of(workload.generate(500, 6))


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_is_documented(name: str) -> None:
    workload = WORKLOADS[name]
    assert workload.name == name
    assert workload.summary
    assert workload.source
    assert "ource" in (workload.make.__doc__ or "")


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserMistake, match="--requests: 0 is too few"):
        WORKLOADS["chat"].generate(0, 0)
    with pytest.raises(UserMistake, match="--seed: -1 is negative"):
        WORKLOADS["chat"].generate(1, -1)


# What the cited source has: requests/s, prompts p50, p90, p99, outputs mean, p50, p99.
CITED = {
    "chat": (5.87, 1_024, 4_076, 4_123, 204, 115, 602),
    "reasoning": (10.76, 160, 1_494, 27_027, 2_805, 1_665, 15_018),
    "tenants": (9.98, 839, 2_389, 3_444, 200, 58, 868),
    "bursts": (3.17, 1_460, 5_047, 7_436, 27, 13, 248),
}


@pytest.mark.parametrize("name", CITED)
def test_near_the_cited_figures(name: str, described: dict[str, TraceDescription]) -> None:
    found = described[name]
    rate, *lengths = CITED[name]
    assert found.requests_per_second == pytest.approx(rate, rel=0.12)
    drawn = (
        found.prompt_tokens.p50, found.prompt_tokens.p90, found.prompt_tokens.p99,
        found.output_tokens.mean, found.output_tokens.p50, found.output_tokens.p99,
    )  # fmt: skip
    assert drawn == pytest.approx(lengths, rel=0.2)


def test_chat_comes_as_azures(described: dict[str, TraceDescription]) -> None:
    assert described["chat"].arrival_cv == pytest.approx(1.08, rel=0.05)


def test_documents_are_rare_and_half_of_the_work(described: dict[str, TraceDescription]) -> None:
    trace = WORKLOADS["chat-and-documents"].generate(20_000, 0)
    assert trace.tenant is not None
    documents = trace.tenant == trace.tenants.index("documents")
    assert documents.mean() == pytest.approx(0.1, abs=0.01)
    assert trace.prompt_tokens[documents].sum() / trace.prompt_tokens.sum() == pytest.approx(0.53, abs=0.05)
    assert np.percentile(trace.prompt_tokens[documents], [50, 90, 99]) == pytest.approx(
        [7_347, 28_195, 89_868], rel=0.15
    )
    assert described["chat-and-documents"].prefill.top_1_percent == pytest.approx(0.2, abs=0.04)
    assert described["chat-and-documents"].prefill.scv > 5 * described["chat"].prefill.scv


def test_reasoning_answers_long_where_it_is_asked_shortly(described: dict[str, TraceDescription]) -> None:
    trace = WORKLOADS["reasoning"].generate(20_000, 0)
    ranks = [column.argsort().argsort() for column in (trace.prompt_tokens, trace.output_tokens)]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(-0.54, abs=0.1)
    assert described["reasoning"].prefill.top_5_percent == pytest.approx(0.69, abs=0.08)
    assert described["reasoning"].prefill.scv == pytest.approx(11.3, rel=0.25)


def test_bursts_burst(described: dict[str, TraceDescription]) -> None:
    found = described["bursts"]
    assert found.arrival_cv == pytest.approx(12.85, rel=0.15)
    assert found.arrival_idc is not None
    assert 35 < found.arrival_idc < 80


def test_one_tenant_is_heavy_and_some_have_deadlines(described: dict[str, TraceDescription]) -> None:
    found = described["tenants"]
    assert found.tenants is not None
    assert found.tenants.tenants == 20
    assert found.tenants.largest_of_requests == pytest.approx(0.32, abs=0.03)
    assert found.tenants.largest_of_prompt_tokens == pytest.approx(0.57, abs=0.05)
    assert 0.3 < found.deadlines < 0.45


def test_coding_agents_are_like_the_recorded_ones(described: dict[str, TraceDescription]) -> None:
    found = described["coding-agents"]
    assert found.prefix_hit == pytest.approx(0.96, abs=0.015)
    assert found.output_tokens.p50 == pytest.approx(218, rel=0.1)
    assert found.output_tokens.p99 == pytest.approx(3_749, rel=0.2)
    assert found.sessions is not None
    assert found.sessions.pause_seconds is not None
    assert found.sessions.turns.mean == pytest.approx(58.6, rel=0.2)
    assert found.sessions.pause_seconds.p50 == pytest.approx(10, rel=0.2)
    assert found.sessions.pause_seconds.p90 == pytest.approx(155, rel=0.2)
    assert found.sessions.pause_seconds.max == 300


def test_an_agents_prompt_grows_by_its_last_answer_and_shares_what_it_held() -> None:
    trace = WORKLOADS["coding-agents"].generate(2_000, 0)
    assert trace.session is not None
    assert trace.turn is not None
    assert trace.prefix_ids is not None
    assert trace.prompt_tokens.max() <= PROMPT_MAX
    grew = 0
    for session in range(int(trace.session.max()) + 1):
        rows = np.flatnonzero(trace.session == session)
        assert trace.turn[rows].tolist() == list(range(len(rows)))
        for before, after in pairwise(rows):
            old, new = list(trace.prefix_ids[before]), list(trace.prefix_ids[after])
            if trace.prompt_tokens[after] > trace.prompt_tokens[before] + trace.output_tokens[before]:
                full = int(trace.prompt_tokens[before]) // 512
                assert new[:full] == old[:full]
                assert not set(new[full:]) & set(old[full:])
                grew += 1
    assert grew > 1_500
    shared = SYSTEM_TOKENS // 512
    for row in trace.prefix_ids:
        full = min(len(row) - 1, shared)  # the last block may be partial, and then it is the call's own
        assert list(row)[:full] == list(range(full))


def test_another_seed_draws_other_clients() -> None:
    assert population(0) == population(0)
    assert population(0) != population(1)
    shares = np.array([client.share for client in population(0)])
    assert np.sort(shares)[-5:].sum() / shares.sum() > 0.4  # a few send most


def test_a_client_mix_bursts(described: dict[str, TraceDescription]) -> None:
    found = described["client-mix"]
    assert found.tenants is not None
    assert found.tenants.tenants > 40
    assert found.arrival_idc is not None
    assert found.arrival_idc > 3


@pytest.mark.parametrize("family", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.4, 1.0, 2.5])
def test_renewal_arrivals_have_their_rate_and_burstiness(family: str, cv: float) -> None:
    arrived = draw_arrivals(stream(0, "test", family), 4.0, cv, 200_000, family)  # type: ignore[arg-type]
    gaps = np.diff(arrived)
    assert 1 / gaps.mean() == pytest.approx(4.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_draws_from_quantiles_have_them() -> None:
    curve = {0: 1.0, 50: 10.0, 90: 500.0, 99: 10_000.0, 100: 20_000.0}
    drawn = draw_from_quantiles(stream(0, "test"), curve, 200_000)
    assert np.percentile(drawn, [50, 90, 99]) == pytest.approx([10, 500, 10_000], rel=0.05)
    assert drawn.min() >= 1
    assert drawn.max() <= 20_000


def test_streams_of_different_names_are_different() -> None:
    assert stream(0, "a").random() != stream(0, "b").random()
    assert stream(0, "a").random() == stream(0, "a").random()
