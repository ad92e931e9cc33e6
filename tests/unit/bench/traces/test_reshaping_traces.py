"""Cutting, scaling, merging and checking lose nothing and break no session."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.bench.traces.reshaping import check_context, head, merge, scale_arrivals
from headway.bench.user_mistake import UserMistake
from headway.bench.workloads import WORKLOADS
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace
from headway.testing.examples import examples
from tests.support.trace_samples import assert_alike, block_rows, tenant_names, traces

quick = settings(max_examples=examples(100))


def sessions_of(trace: Trace) -> dict[int, list[tuple[int, int, int]]]:
    """Session -> its (turn, prompt, output) in the order of the rows."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    if trace.session is None or trace.turn is None:
        return found
    for session, turn, prompt, output in zip(
        trace.session, trace.turn, trace.prompt_tokens, trace.output_tokens, strict=True
    ):
        if session >= 0:
            found.setdefault(int(session), []).append((int(turn), int(prompt), int(output)))
    return found


def assert_sessions_whole(trace: Trace) -> None:
    """Turns 0, 1, 2, ... in order of the rows; sessions numbered without gaps."""
    sessions = sessions_of(trace)
    assert sorted(sessions) == list(range(len(sessions)))
    for turns in sessions.values():
        assert [turn for turn, _, _ in turns] == list(range(len(turns)))


@quick
@given(trace=traces(), requests=st.integers(1, 15))
def test_head_takes_the_first_and_whole_beginnings_of_sessions(trace: Trace, requests: int) -> None:
    first = head(trace, requests)
    kept = min(requests, len(trace))
    assert len(first) == kept
    np.testing.assert_equal(first.prompt_tokens, trace.prompt_tokens[:kept])
    np.testing.assert_equal(first.arrived_seconds, trace.arrived_seconds[:kept])
    if trace.tenant is not None:
        assert tenant_names(first) == tenant_names(trace)[:kept]  # type: ignore[index]
    if trace.prefix_ids is not None:
        assert block_rows(first) == block_rows(trace)[:kept]  # type: ignore[index]
    assert_sessions_whole(first)
    if kept < len(trace) and first.tenant is not None:
        assert set(first.tenant) == set(range(len(first.tenants)))


def test_head_of_nothing() -> None:
    with pytest.raises(UserMistake, match="--requests: 0 is too few"):
        head(WORKLOADS["chat"].generate(3, 0), 0)


@quick
@given(trace=traces(), factor=st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]))
def test_scaling_moves_starts_and_keeps_the_rest(trace: Trace, factor: float) -> None:
    scaled = scale_arrivals(trace, factor)
    assert (np.diff(scaled.arrived_seconds) >= 0).all()
    assert sorted(scaled.prompt_tokens) == sorted(trace.prompt_tokens)
    assert_sessions_whole(scaled)
    assert sessions_of(scaled) == sessions_of(trace)
    for session in sessions_of(trace):
        assert trace.session is not None
        assert scaled.session is not None
        before = trace.arrived_seconds[trace.session == session]
        after = scaled.arrived_seconds[scaled.session == session]
        assert after[0] == pytest.approx(before[0] / factor)
        np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-9)
    if trace.session is None:
        np.testing.assert_allclose(scaled.arrived_seconds * factor, trace.arrived_seconds)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_scaling_by_nonsense(factor: float) -> None:
    with pytest.raises(UserMistake, match="is not a number above 0"):
        scale_arrivals(WORKLOADS["chat"].generate(3, 0), factor)


@quick
@given(parts=st.lists(traces(6), min_size=2, max_size=4))
def test_merging_keeps_every_request_apart(parts: list[Trace]) -> None:
    whole = merge(parts)
    assert len(whole) == sum(map(len, parts))
    assert (np.diff(whole.arrived_seconds) >= 0).all()
    assert_sessions_whole(whole)
    before = sorted(turns for part in parts for turns in sessions_of(part).values())
    assert sorted(sessions_of(whole).values()) == before
    named = [names for part in parts if (names := set(tenant_names(part) or [""]))]
    assert len(set(tenant_names(whole) or [])) == sum(map(len, named))
    if whole.prefix_ids is not None:
        # a block shared within a trace is shared after merging, one of another trace is not
        shared = [{block for row in rows for block in row} for part in parts if (rows := block_rows(part))]
        assert len({block for row in whole.prefix_ids for block in row}) == sum(map(len, shared))


def test_merging_one_changes_nothing() -> None:
    trace = WORKLOADS["coding-agents"].generate(20, 0)
    assert_alike(merge([trace]), trace)


def test_merged_tenants_are_called_after_their_trace() -> None:
    chat, tenants = WORKLOADS["chat"].generate(5, 0), WORKLOADS["tenants"].generate(5, 0)
    names = set(tenant_names(merge([chat, tenants, chat])) or [])
    assert {"chat-1", "chat-3"} < names
    assert all(name.startswith(("chat-", "tenants/c")) for name in names)


def test_merging_blocks_of_different_sizes() -> None:
    one = WORKLOADS["coding-agents"].generate(3, 0)
    with pytest.raises(UserMistake, match="prefix blocks of 16 and 512 tokens"):
        merge([one, replace(one, prefix_block_tokens=16)])
    with pytest.raises(UserMistake, match="no trace to merge"):
        merge([])


def long_trace() -> Trace:
    return Trace(
        name="long",
        arrived_seconds=np.arange(4.0),
        prompt_tokens=np.array([100, 1_000, 5, 2_000]),
        output_tokens=np.array([10, 100, 1_200, 1]),
        prefix_ids=BlockIds.of([[0], [0, 1], [2], [0, 1, 3, 4]]),
    )


def test_a_request_past_the_context_is_named_with_the_fix() -> None:
    with pytest.raises(UserMistake) as told:
        check_context(long_trace(), 1_099)
    assert str(told.value).startswith(
        "long: request 2 (and 2 more): 1,000 prompt + 100 output tokens are past the model's context of 1,099; "
        "give --over-context refuse"
    )
    with pytest.raises(UserMistake, match="long: line 8 "):
        check_context(long_trace(), 1_099, lines=[2, 8, 9, 10])


def test_a_context_that_holds_everything() -> None:
    trace, notes = check_context(long_trace(), 2_001)
    assert_alike(trace, long_trace())
    assert notes == []


def test_refusing_is_left_to_the_replica() -> None:
    trace, notes = check_context(long_trace(), 1_099, "refuse")
    assert_alike(trace, long_trace())
    assert notes == ["long: 3 of 4 requests are past the model's context of 1,099 and will be refused"]
    _, notes = check_context(long_trace(), 1_999, "refuse")
    assert notes == ["long: 1 of 4 requests is past the model's context of 1,999 and will be refused"]


def test_cutting_takes_from_the_prompts_end() -> None:
    trace, notes = check_context(long_trace(), 1_000, "cut")
    assert trace.prompt_tokens.tolist() == [100, 900, 1, 999]
    assert trace.output_tokens.tolist() == [10, 100, 999, 1]
    assert block_rows(trace) == [[0], [0, 1], [2], [0, 1]]
    assert "their prompts are cut to fit" in notes[0]
    assert check_context(trace, 1_000)[1] == []
