"""A replica's figures age each by itself, and its limits follow what it reports and refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from tests.support.estimated_request import estimated_request


def test_every_figure_has_an_age_of_its_own_and_old_ones_decide_nothing() -> None:
    now = [100.0]
    one = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1"), HealthSettings(stale_seconds=5.0), lambda: now[0])
    one.reported(LoadReport(waiting=0, running=30, kv_share=0.5, kv_tokens_max=1_000))
    assert one.ledger.requests_max == 2  # 32 to begin with, less 30 of others
    now[0] = 104.0
    one.reported_in_header(LoadReport(waiting=1, kv_share=0.9))
    assert one.state.report == LoadReport(waiting=1, running=30, kv_share=0.9, kv_tokens_max=1_000)
    assert one.ages_seconds() == {"waiting": 0.0, "running": 4.0, "kv_share": 0.0, "kv_tokens_max": 4.0}
    now[0] = 106.0
    one.reported_in_header(LoadReport(waiting=0))
    assert one.ledger.requests_max == 32  # nobody has said for 6 s that others are there


def test_memory_that_others_hold_is_not_given_away() -> None:
    now = [100.0]
    one = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1"), HealthSettings(stale_seconds=5.0), lambda: now[0])

    def request(number: int) -> Request:
        made = Request(number, 0.0, 200)
        made.estimate = PointEstimate(20, "test")
        return made

    one.ledger.enter(request(1))
    one.ledger.first_token(request(1))
    one.reported(LoadReport(waiting=0, running=1, kv_share=0.2, kv_tokens_max=1_000))
    assert one.has_room(request(2))
    one.reported(LoadReport(waiting=0, running=1, kv_share=0.9, kv_tokens_max=1_000))
    assert not one.has_room(request(2))
    now[0] = 106.0
    assert one.has_room(request(2))


def test_a_limit_that_refusals_cut_down_grows_again_on_embeddings_alone() -> None:
    now = [100.0]
    one = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1"), HealthSettings(), lambda: now[0])
    for _ in range(40):
        one.refused()
        now[0] += 1.0
    assert one.ledger.requests_max == 1
    for number in range(60):
        while one.ledger.requests < one.ledger.requests_max:
            made = Request(1_000 * number + one.ledger.requests, 0.0, 200)
            made.estimate = PointEstimate(1, "test")
            one.ledger.enter(made)
        one.completed(is_generation=False)
    assert one.ledger.requests_max >= 8


def test_a_debugger_shows_its_health_and_load() -> None:
    one = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1", max_requests=4), HealthSettings(), lambda: 0.0)
    assert repr(one) == "<replica 127.0.0.1:1: unknown, 0/4 requests>"


def fleet(now: list[float], number: int, models: tuple[str, ...] = ("m",), **health: float) -> list[UpstreamReplica]:
    replicas: list[UpstreamReplica] = []
    for port in range(1, number + 1):
        settings = ReplicaSettings(url=f"http://127.0.0.1:{port}")
        one = UpstreamReplica(settings, HealthSettings(**health), lambda: now[0], lambda: replicas)  # type: ignore[arg-type]
        one.state.models = {model: {} for model in models}
        one.probed(True)
        replicas.append(one)
    return replicas


def ejected(replicas: list[UpstreamReplica]) -> int:
    return sum(one.state.health is Health.EJECTED for one in replicas)


@pytest.mark.parametrize("error", [TimeoutError(), OSError("no such name"), OSError(113, "no route")])
def test_no_connection_in_time_is_one_failure_and_a_refused_one_a_verdict(error: OSError) -> None:
    one, other = fleet([0.0], 2)
    for _ in range(4):
        one.unreachable(error)
    assert one.is_up
    one.unreachable(error)
    assert not one.is_up
    other.unreachable(ConnectionRefusedError())
    assert not other.is_up


def test_a_good_answer_ends_the_row() -> None:
    one, _ = fleet([0.0], 2, failing_share=1.0)
    for _ in range(20):
        one.failed("x")
        one.completed(is_generation=True)
    assert one.is_up
    for _ in range(3):
        one.probed(False, "x")
        one.failed("x")
        one.completed(is_generation=False)
    assert one.is_up


@given(
    st.integers(1, 12),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.lists(st.integers(0, 11), max_size=120),
)
def test_failures_of_requests_eject_within_the_bounds_whatever_fails(
    number: int, share: float, panic: float, failing: list[int]
) -> None:
    replicas = fleet([0.0], number, ejected_share_max=share, panic_share=panic, failures_to_eject=2)
    for index in failing:
        replicas[index % number].failed("x")
        assert ejected(replicas) <= max(1, int(share * number))
        assert sum(one.is_up for one in replicas) >= panic * number


def test_the_bounds_hold_for_each_model() -> None:
    """Two of twenty may go, but not both that serve the model of the poison."""
    replicas = fleet([0.0], 20, failures_to_eject=1)
    for one in replicas[:2]:
        one.state.models = {"rare": {}}
    for one in replicas[:2]:
        one.failed("x")
    assert ejected(replicas[:2]) == 1
    assert replicas[1].state.ejections_withheld == 1


def test_probes_that_fail_in_a_row_eject_beyond_the_bounds() -> None:
    replicas = fleet([0.0], 2)
    for one in replicas:
        for _ in range(5):
            one.probed(False, "it answered its probe with status 500")
    assert ejected(replicas) == 2


def test_what_failures_ejected_is_probed_at_once_when_the_others_go() -> None:
    now = [100.0]
    first, second = fleet(now, 2, eject_seconds=60.0)
    for _ in range(5):
        first.failed("x")
    assert first.state.probe_at == 160.0
    second.probed(False, "x", refused=True)
    assert (ejected([first, second]), first.state.probe_at) == (2, 100.0)


def test_a_stall_needs_both_a_silent_request_and_metrics_that_came_before() -> None:
    now = [100.0]
    one, _ = fleet(now, 2)
    one.ledger.enter(estimated_request(1, 200, 10))
    one.look_for_stall(100.0, owes=True)
    one.look_for_stall(1_000.0, owes=True)
    assert one.is_up  # its metrics are not known to be missing
    one.metrics_missed(None)
    one.look_for_stall(1_000.0, owes=True)
    assert one.is_up  # they never came, or break off
    one.metrics_missed(900.0)
    one.metrics_missed(None)
    one.look_for_stall(1_000.0, owes=True)
    assert one.is_up  # who breaks off is alive
    one.metrics_missed(1_000.0)
    one.made_progress()
    one.look_for_stall(1_015.0, owes=True)
    one.look_for_stall(1_020.0, owes=True)
    assert one.is_up  # an answer goes on
    one.look_for_stall(1_030.0, owes=True)
    assert one.state.health is Health.EJECTED


def test_silence_is_no_stall_while_no_answer_is_due() -> None:
    one, two, _, _ = fleet([100.0], 4, panic_share=0.0, ejected_share_max=1.0)
    for replica in (one, two):
        replica.ledger.enter(estimated_request(1, 200, 10))
        replica.metrics_missed(100.0)
        for second in range(100, 200):
            replica.look_for_stall(float(second), owes=False)
        assert replica.is_up
    one.look_for_stall(200.0, owes=True)
    assert one.state.health is Health.EJECTED
    two.probed(False, "it cannot be reached: no answer in time")
    two.look_for_stall(200.0, owes=False)
    assert two.state.health is Health.EJECTED  # silent in every way


def answer_in_turn(replica: UpstreamReplica, answers: int) -> None:
    """Every second answer fails."""
    for number in range(answers):
        if number % 2:
            replica.completed(is_generation=True)
        else:
            replica.failed("it breaks off")


def test_a_replica_that_fails_at_every_second_answer_stands_out() -> None:
    sick, well = fleet([0.0], 2)
    for _ in range(20):
        well.completed(is_generation=True)
    answer_in_turn(sick, 8)
    assert sick.is_up  # so few tell nothing
    answer_in_turn(sick, 4)
    assert not sick.is_up
    assert sick.state.last_failure == "it breaks off"


def test_where_all_fail_as_often_the_requests_are_to_blame() -> None:
    replicas = fleet([0.0], 4)
    for _ in range(20):
        for one in replicas:
            answer_in_turn(one, 2)
    assert ejected(replicas) == 0


def test_where_nothing_is_known_of_the_others_they_get_their_turn() -> None:
    first, second = fleet([0.0], 2)
    answer_in_turn(first, 12)
    assert not first.is_up
    first.probed(True)
    answer_in_turn(second, 40)
    assert second.is_up  # no better, no worse
    answer_in_turn(first, 40)
    assert first.is_up
    (alone,) = fleet([0.0], 1)
    answer_in_turn(alone, 40)
    assert alone.is_up


def test_a_replica_that_keeps_failing_often_stays_away_longer_each_time() -> None:
    now = [0.0]
    sick, well = fleet(now, 2)
    for _ in range(20):
        well.completed(is_generation=True)
    waits = []
    for _ in range(5):
        while sick.is_up:
            answer_in_turn(sick, 2)
        waits.append(sick.state.probe_at - now[0])
        now[0] = sick.state.probe_at
        sick.probed(True)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0]
    for _ in range(20):
        sick.completed(is_generation=True)
    assert sick.state.ejections == 0


def test_preemptions_are_counted_from_the_first_report_and_over_restarts_of_the_engine() -> None:
    now = [100.0]
    one, _ = fleet(now, 2)
    for counted in (40, 43, None, 45, 2, 3):
        one.reported(LoadReport(0, 0, 0.5, 1_000, preemptions=counted))
    assert one.take_preemptions() == 3 + 2 + 1
    assert one.take_preemptions() == 0


def test_the_engines_steps_reach_the_ledger() -> None:
    now = [100.0]
    one, _ = fleet(now, 2)
    request = estimated_request(1, 200, 10)
    one.ledger.enter(request)
    one.ledger.first_token(request)
    for steps in (10.0, 25.0):
        one.reported(LoadReport(0, 1, 0.5, 1_000, steps=steps))
    assert one.ledger.decode_steps == 15
