"""A replica's figures age each by itself, and its limits follow what it reports and refuses."""

from __future__ import annotations

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings


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
