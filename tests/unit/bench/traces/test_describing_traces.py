"""The numbers of a description, on traces small enough to count by hand and on the public ones."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from rich.console import Console

from headway.bench.traces.describing import describe, prefix_hits
from headway.bench.traces.finding import trace_folder
from headway.bench.traces.loading import load_trace
from headway.bench.traces.picture import arrival_profile, description_view, length_histogram
from headway.bench.traces.sources import SOURCES, sources_text
from headway.bench.workloads import WORKLOADS
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace


def small(**columns: object) -> Trace:
    return Trace(
        name="small",
        arrived_seconds=np.array([0.0, 1.0, 4.0, 25.0]),
        prompt_tokens=np.array([10, 20, 30, 1_000]),
        output_tokens=np.array([1, 2, 3, 4]),
        **columns,  # type: ignore[arg-type]
    )


def test_by_hand() -> None:
    found = describe(small())
    assert found.requests == 4
    assert found.span_seconds == 25
    assert found.requests_per_second == pytest.approx(0.16)
    gaps = [1, 3, 21]
    assert found.arrival_cv == pytest.approx(np.std(gaps) / np.mean(gaps))
    assert found.arrival_idc == pytest.approx(np.var([3, 0]) / 1.5)
    assert found.prompt_tokens.mean == 265
    assert found.prompt_tokens.p50 == 25
    assert found.prompt_tokens.max == 1_000
    assert found.prefill.top_10_percent == pytest.approx(1_000 / 1_060)
    assert found.prefill.scv == pytest.approx(np.var([10, 20, 30, 1_000]) / 265**2)
    assert found.prefix_hit is None
    assert found.tenants is None
    assert found.sessions is None


def test_years_between_two_requests_take_no_memory_of_their_own() -> None:
    """A clock that was wrong in the first line: 53 years of bins of 10 s would be gigabytes."""
    times = np.array([0.0, 1_700_000_000.0, 1_700_000_001.0, 1_700_000_011.0])
    ones = np.ones(4, dtype=np.int64)
    found = describe(Trace("w", times, ones, ones))
    assert found.arrival_idc == pytest.approx((1 + 4) / 3)  # Σ n² over Σ n; the square of a mean near 0 is nothing


def test_waits_of_one_server() -> None:
    """A long request, then two short ones while it is served: both orders serve it first, then differ."""
    trace = Trace("w", np.array([0.0, 1.0, 2.0, 100.0]), np.array([60, 10, 5, 5]), np.ones(4, dtype=np.int64))
    # 80 % of 100 s over 80 tokens: 1 s a token. FCFS: waits 0, 59, 68, 0; shortest first: 0, 64, 58, 0.
    assert describe(trace).prefill.fcfs_over_sjf == pytest.approx(127 / 122)


def test_tenants_sessions_and_deadlines() -> None:
    found = describe(
        small(
            tenant=np.array([0, 0, 2, 0]),
            tenants=("a", "b", "c"),
            session=np.array([0, 0, -1, 1]),
            turn=np.array([0, 1, 0, 0]),
            think_seconds=np.array([0, 7.5, 0, 0]),
            deadline_seconds=np.array([1.0, np.nan, np.nan, np.nan]),
        )
    )
    assert found.tenants is not None
    assert found.sessions is not None
    assert found.sessions.pause_seconds is not None
    assert found.tenants.tenants == 2
    assert found.tenants.largest_of_requests == 0.75
    assert found.tenants.largest_of_prompt_tokens == pytest.approx(1_030 / 1_060)
    assert found.sessions.sessions == 2
    assert found.sessions.turns.max == 2
    assert found.sessions.pause_seconds.p50 == 7.5
    assert found.deadlines == 0.25


def test_prefix_hits_are_leading_blocks_seen_before() -> None:
    trace = small(prefix_ids=BlockIds.of([[1], [1, 2], [3, 2], [1, 2, 4]]), prefix_block_tokens=16)
    assert prefix_hits(trace).tolist() == [0, 16, 0, 32]
    assert describe(trace).prefix_hit == pytest.approx(48 / 1_060)


@pytest.mark.parametrize("count", [1, 2])
def test_very_short_traces(count: int) -> None:
    trace = WORKLOADS["chat"].generate(count, 0)
    found = describe(trace)
    assert found.requests == count
    assert found.arrival_cv is None
    text = rendered(trace)
    assert "prompt tokens" in text


def rendered(trace: Trace) -> str:
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(description_view(trace, describe(trace)))
        return console.export_text()


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_can_be_described_and_pictured(name: str) -> None:
    trace = WORKLOADS[name].generate(400, 0)
    numbers = describe(trace).as_json()
    assert json.loads(json.dumps(numbers)) == numbers
    text = rendered(trace)
    assert name in text
    assert "arrivals over time" in text


def test_the_histogram_counts_every_request_once() -> None:
    lines = length_histogram(np.array([1, 2, 3, 4, 1_024])).splitlines()[1:]
    assert len(lines) == 11
    assert "1,024–2,047" in lines[-1]
    assert sum(float(line.split()[-2].rstrip("%")) for line in lines) == pytest.approx(100)


def test_the_profile_marks_every_slice_with_somebody_in_it() -> None:
    line, caption = arrival_profile(np.array([0.0, 99.0, 100.0])).splitlines()
    assert line[0] != " "
    assert line[1:-1].strip() == ""
    assert caption.startswith("0 … 100.0 s, peak")
    assert arrival_profile(np.zeros(3)) == "all 3 at once"


def test_sources_name_licence_and_way() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert source.address.startswith("https://")
        assert source.licence in sources_text()


# requests, requests/s, CV, mean prompt, p99 prompt, mean output, top 5 %, SCV, FCFS ÷ SJF
PUBLISHED = {
    "azure_code_2023": (6_521, 3.17, 12.85, 2_040, 7_436, 27, 0.18, 0.9, 2.7),
    "azure_conv_2023": (12_340, 5.87, 1.08, 1_246, 4_123, 204, 0.17, 0.9, 3.2),
    "mooncake_conversation": (6_848, 3.23, 2.95, 12_566, 89_868, 347, 0.28, 1.7, 2.2),
    "servegen_deepseek_r1": (38_724, 10.76, 1.58, 1_268, 27_027, 2_805, 0.69, 11.3, 9.0),
}


@pytest.mark.skipif(trace_folder() is None, reason="HEADWAY_TRACES names no folder of public traces")
@pytest.mark.parametrize("name", PUBLISHED)
def test_public_traces_have_their_known_statistics(name: str) -> None:
    found = describe(load_trace(name).trace)
    requests, rate, cv, prompt, prompt_p99, output, top, scv, waits = PUBLISHED[name]
    assert found.requests == requests
    assert found.requests_per_second == pytest.approx(rate, abs=0.006)
    assert found.arrival_cv == pytest.approx(cv, abs=0.006)
    assert found.prompt_tokens.mean == pytest.approx(prompt, abs=0.6)
    assert found.prompt_tokens.p99 == pytest.approx(prompt_p99, abs=0.6)
    assert found.output_tokens.mean == pytest.approx(output, abs=0.6)
    assert found.prefill.top_5_percent == pytest.approx(top, abs=0.006)
    assert found.prefill.scv == pytest.approx(scv, abs=0.06)
    assert found.prefill.fcfs_over_sjf == pytest.approx(waits, abs=0.06)


@pytest.mark.slow
@pytest.mark.skipif(trace_folder() is None, reason="HEADWAY_TRACES names no folder of public traces")
def test_recorded_sessions_have_their_known_statistics() -> None:
    found = describe(load_trace("agentic_coding_weka").trace)
    assert found.prefix_hit == pytest.approx(0.96, abs=0.006)
    assert found.uncached_prefill is not None
    assert found.uncached_prefill.top_1_percent == pytest.approx(0.43, abs=0.006)
    assert found.uncached_prefill.scv == pytest.approx(28.9, abs=0.06)
    assert found.uncached_prefill.fcfs_over_sjf == pytest.approx(54.6, abs=0.06)
    assert found.sessions is not None
    assert found.sessions.pause_seconds is not None
    assert found.sessions.sessions == 426
    assert found.sessions.pause_seconds.p50 == pytest.approx(10.0)
    assert found.sessions.pause_seconds.p99 == pytest.approx(2_885.9, abs=0.2)
