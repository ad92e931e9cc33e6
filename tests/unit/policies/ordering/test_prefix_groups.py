"""Prefix groups: those that share a prefix run one after another, those with most output per prompt token first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Completed
from headway.domain.request import Request
from headway.gateway.queueing.queue_policies import policies_of
from headway.gateway.settings import PolicySettings
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.prefix_groups import PrefixGroups
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.checked_policies import CheckedEvents, PlainAsker
from headway.scheduling.scheduler import OfflinePolicies, Policies, Scheduler
from headway.simulator.trace import Trace
from headway.testing.examples import examples
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.request_entries import BlockHashes

paths = st.lists(st.integers(1, 3), max_size=5)


def request(number: int, blocks: Sequence[int], prompt_tokens: int = 100, output_tokens: int = 10) -> Request:
    """Of a prompt of these blocks; the hash of a prefix is a number of all its blocks."""
    made = Request(number, float(number), prompt_tokens, max_output_tokens=output_tokens)
    made.prefix_hashes = [hash(tuple(blocks[: place + 1])) for place in range(len(blocks))]
    made.estimate = PointEstimate(output_tokens, "test")
    return made


def scheduler(*, offline: bool = False) -> Scheduler:
    chosen = OfflinePolicies(PrefixGroups(), DeclaredMax())
    if offline:
        return Scheduler(Policies(Fcfs(), Greedy(), LatestAdmitted(), DeclaredMax(), chosen))
    return Scheduler(Policies(chosen.ordering, Greedy(), LatestAdmitted(), DeclaredMax()))


def served(requests: Sequence[Request], *, offline: bool = False) -> list[object]:
    """The order in which requests that all wait are served."""
    brain = scheduler(offline=offline)
    for one in requests:
        one.is_offline = offline
        brain.arrive(one, 100.0)
    return [brain.admit(100.0).id for _ in requests]


def of_prefix(requests: Sequence[Request], places: Sequence[object], prefix: int) -> list[int]:
    """Places in the order of service of those that share a prefix."""
    sharing = {one.id for one in requests if prefix in one.prefix_hashes}
    return [place for place, number in enumerate(places) if number in sharing]


@pytest.mark.parametrize("offline", [False, True])
def test_the_worked_example(offline: bool) -> None:
    """Two documents asked three times each in turn; the one with the longer answers goes first, as a whole."""
    requests = [request(number, [1, 1 + number % 2], 100, 40 if number % 2 else 10) for number in range(6)]
    assert served(requests, offline=offline) == [1, 3, 5, 0, 2, 4]


@given(st.lists(st.tuples(paths, st.integers(10, 300), st.integers(1, 80)), min_size=1, max_size=31))
@settings(max_examples=examples(200))
def test_requests_that_share_a_prefix_run_one_after_another(drawn: list[tuple[list[int], int, int]]) -> None:
    """Up to four blocks: of those every prefix has a group. Fewer requests than bring a new look."""
    requests = [request(number, *one) for number, one in enumerate(drawn)]
    order = served(requests)
    assert sorted(order, key=str) == sorted(range(len(requests)), key=str)
    for prefix in {prefix for one in requests for prefix in one.prefix_hashes[:4]}:
        places = of_prefix(requests, order, prefix)
        assert places == list(range(places[0], places[0] + len(places)))


@given(st.lists(st.tuples(paths, st.integers(10, 300), st.integers(1, 80)), min_size=32, max_size=80))
@settings(max_examples=examples(50))
def test_so_they_do_after_a_new_look(drawn: list[tuple[list[int], int, int]]) -> None:
    requests = [request(number, *one) for number, one in enumerate(drawn)]
    order = served(requests)
    for prefix in {prefix for one in requests for prefix in one.prefix_hashes[:4]}:
        places = of_prefix(requests, order, prefix)
        assert places == list(range(places[0], places[0] + len(places)))


@given(st.lists(st.tuples(paths, st.integers(10, 300), st.integers(1, 80), st.integers(0, 2)), max_size=80))
@settings(max_examples=examples(100))
def test_nothing_is_kept_and_no_count_is_wrong(drawn: list[tuple[list[int], int, int, int]]) -> None:
    """However requests end, and whether they are ranked or heard of first."""
    order, waiting = PrefixGroups(), list[Request]()
    for number, (blocks, prompt, output, end) in enumerate(drawn):
        one = request(number, blocks, prompt, output)
        if number % 2:
            order.rank(one)
        order.observe(Arrived(one, 0.0))
        assert order.rank(one) == order.rank(one)
        waiting.append(one)
        if end == 1:
            order.observe(Admitted(waiting.pop(0), 0.0))
        elif end == 2:
            order.observe(Cancelled(waiting.pop(), 0.0))
        assert {group.members for group in order._groups.values()} <= set(range(1, len(waiting) + 1))
        assert all(group.prompt_tokens >= group.members for group in order._groups.values())
    for one in waiting:
        order.observe(Completed(one, 0.0, 1))
        order.observe(Completed(one, 0.0, 1))
    assert not order._groups
    assert not order._waiting


def test_a_shared_prefix_counts_once() -> None:
    """Ten questions of one document of 900 tokens take 100 tokens more each; alone each has a longer answer per token.

    The last arrival brings the look that sees them all.
    """
    alone = [request(number, [10 + number], 1_000, 20) for number in range(22)]
    group = [request(30 + number, [1, 2, 3, 4, 5, 6, 7, 8, 9, 50 + number], 1_000, 10) for number in range(10)]
    order = served([*alone, *group])
    assert order[:10] == [one.id for one in group]


def test_a_new_look_moves_a_group_that_grew() -> None:
    order = PrefixGroups()
    first = request(0, [1, 2, 3], 300, 10)
    before = order.rank(first)
    for number in range(32):
        order.observe(Arrived(request(1 + number, [1, 2, 3], 300, 10), 0.0))
        assert order.redrawn == (number == 31)
    assert order.rank(first)[0] < before[0]


def test_without_prefixes_it_goes_by_output_per_prompt_token() -> None:
    requests = [request(0, [], 100, 10), request(1, [], 100, 20), request(2, [], 10, 10), request(3, [], 10, 10)]
    assert served(requests) == [2, 3, 1, 0]


def test_requests_that_look_alike_but_share_nothing_do_not_change_places() -> None:
    """Of equals the first to come is served first, and another prefix is no equal."""
    requests = [request(number, [1 + number % 3]) for number in range(9)]
    assert served(requests) == [0, 3, 6, 1, 4, 7, 2, 5, 8]


def test_a_long_prompt_has_few_groups() -> None:
    order = PrefixGroups()
    long = Request(0, 0.0, 1 << 17, max_output_tokens=1)
    long.estimate = PointEstimate(1, "test")
    long.prefix_hashes = range(8_192)
    order.rank(long)
    assert len(order._groups) == 23


def test_it_is_the_order_of_offline_requests_where_it_is_named() -> None:
    plugin = read_config({"headway": {"offline_ordering": "prefix-groups"}}, {}).policies()
    gateway = policies_of(PolicySettings(offline_ordering="prefix-groups"))
    for policies in (plugin, gateway):
        assert isinstance(policies.offline.ordering, PrefixGroups)
        assert not isinstance(policies.ordering, PrefixGroups)


def test_an_unknown_order_of_offline_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix-grups"):
        read_config({"headway": {"offline_ordering": "prefix-grups"}}, {})


def test_it_hears_of_offline_requests_where_no_online_policy_listens() -> None:
    offline = OfflinePolicies(PrefixGroups(), DeclaredMax())
    policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), DeclaredMax(), offline)
    assert CheckedEvents(policies, PlainAsker(), lambda: None)
    quiet = Policies(Fcfs(), Greedy(), LatestAdmitted(), DeclaredMax(), OfflinePolicies(Fcfs(), DeclaredMax()))
    assert not CheckedEvents(quiet, PlainAsker(), lambda: None)


def test_blocks_of_the_engine_are_numbers() -> None:
    hashes = [bytes([place] * 32) for place in (1, 2, 3)]
    numbers = BlockHashes(hashes)
    hashes.append(b"of an output")
    assert len(numbers) == 3
    assert list(numbers) == numbers[:] == [int.from_bytes(bytes([place] * 8), "big") for place in (1, 2, 3)]
    assert numbers[-1] == numbers[2]


def test_blocks_without_an_id_are_the_rows_own() -> None:
    trace = Trace("t", np.zeros(2), np.array([40, 9]), np.ones(2, int), prefix_ids=[[5, 6], [5]], prefix_block_tokens=8)
    assert trace.prefix_hashes(0)[:2] == [5, 6]
    assert len(set(trace.prefix_hashes(0))) == 5
    assert trace.prefix_hashes(1) == [5]
