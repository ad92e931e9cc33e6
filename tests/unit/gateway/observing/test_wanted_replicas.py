"""How many replicas the gateway asks for: without traffic, with unknown capacity, from zero, and by the rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.gateway.observing.recent_traffic import RecentTraffic
from headway.gateway.observing.wanted_replicas import ScalingFigures, WantedReplicas, pace_at
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.learned_costs import AnswerTimes
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings, ScalingSettings, Settings
from headway.scheduling.stability import RequestNeeds, StepCapacity, stable_rate, volume
from tests.support.gateway_requests import gateway_request

PROMPT, OUTPUT, STEP_SECONDS, TOKEN_SECONDS = 1_000, 100, 0.02, 2e-5


class Day:
    """A gateway's traffic by hand."""

    def __init__(self, scaling: ScalingSettings | None = None) -> None:
        self.now = 1_000.0
        self.settings = Settings(scaling=scaling or ScalingSettings())
        self.replicas: list[UpstreamReplica] = []
        self.wanted = WantedReplicas(lambda: self.settings, lambda: self.replicas, lambda: self.now)
        self._number = 0

    def add_replica(self, *, kv_tokens: int | None = 100_000, seats: int | None = None) -> UpstreamReplica:
        name = f"r{len(self.replicas)}"
        chosen = ReplicaSettings(url=f"http://{name}:1", name=name, kv_tokens=kv_tokens, max_requests=seats)
        one = UpstreamReplica(chosen, HealthSettings(), lambda: self.now)
        one.state.health = Health.UP
        one.listed({"m": {}, "adapter": {}}, {"adapter": "m"})
        for tokens in (500, 1_000) * 8:
            times = AnswerTimes(tokens, tokens * TOKEN_SECONDS, 2, 0.0)
            one.learned_costs.answered(times, ServiceCosts(TOKEN_SECONDS, STEP_SECONDS), self.now)
        self.replicas.append(one)
        return one

    def ask(self, model: str = "m", **fields: object) -> GatewayRequest:
        self._number += 1
        request = gateway_request(
            self._number, {"prompt": "x", "stream": True}, model=model, arrived_at=self.now, **fields
        )
        self.wanted.arrived(request)
        return request

    def answer(self, request: GatewayRequest, by: UpstreamReplica) -> None:
        request.relayed.status = 200
        request.relayed.usage = Usage(PROMPT, OUTPUT, 0)
        request.relayed.first_byte_at = self.now - STEP_SECONDS * (OUTPUT - 1)
        request.queued.replica = by
        self.wanted.ended(request, Outcome.COMPLETED, None, self.now)

    def refuse(self, request: GatewayRequest, reason: Reason) -> None:
        self.wanted.ended(request, Outcome.REFUSED, reason, self.now)

    def serve(self, seconds: int, a_second: int) -> None:
        """Requests that come evenly, and are answered at once by all replicas in turn."""
        for second in range(seconds):
            for number in range(a_second):
                self.answer(self.ask(), self.replicas[(second * a_second + number) % len(self.replicas)])
            self.now += 1.0

    @property
    def figures(self) -> dict[str, ScalingFigures]:
        return self.wanted.figures()


def test_without_traffic_none_are_wanted() -> None:
    day = Day()
    assert {model: one.replicas for model, one in day.figures.items()} == {"": 0}
    day.add_replica()
    assert {model: one.replicas for model, one in day.figures.items()} == {"m": 0}


def test_what_waits_for_the_first_replica_wants_one() -> None:
    day = Day()
    day.ask()
    assert day.figures == {"": ScalingFigures(1, pytest.approx(1 / 60), None)}
    day.now += 10_000.0
    assert day.figures[""].replicas == 1, "it is still inside"


def test_while_the_capacity_is_unknown_there_are_as_many_as_now() -> None:
    day = Day()
    for _ in range(3):
        day.add_replica(kv_tokens=None)
    day.serve(120, 5)
    assert day.figures["m"] == ScalingFigures(3, pytest.approx(5.0, rel=0.1), None)


@pytest.mark.parametrize("a_second", [1, 20, 100])
def test_the_rule_is_that_of_the_paper(a_second: int) -> None:
    day = Day()
    day.add_replica()
    day.add_replica()
    day.serve(300, a_second)
    figures = day.figures["m"]
    assert figures.offered_rate == pytest.approx(a_second, rel=0.05)
    seat_steps, token_steps = volume(PROMPT, OUTPUT)
    needs = RequestNeeds(PROMPT, seat_steps, token_steps, PROMPT + OUTPUT)
    prompts = min(0.9, figures.offered_rate / 2 * PROMPT * TOKEN_SECONDS)
    expected = stable_rate(needs, StepCapacity(100_000, None, TOKEN_SECONDS, STEP_SECONDS * (1 - prompts)))
    assert expected is not None
    assert figures.stable_rate == pytest.approx(expected, rel=0.02)
    share = figures.offered_rate / (expected * 0.8)
    assert figures.replicas - 1 < share * 1.03
    assert figures.replicas > share * 0.97


def test_seats_count_once_the_limit_is_known() -> None:
    roomy, narrow = Day(), Day()
    roomy.add_replica()
    narrow.add_replica(seats=4)
    for day in (roomy, narrow):
        day.serve(100, 5)
    wide, few = roomy.figures["m"].stable_rate, narrow.figures["m"].stable_rate
    assert wide is not None
    assert few is not None
    assert few < wide / 5


def test_a_measured_rate_stands_in_for_what_is_not_seen() -> None:
    day = Day(ScalingSettings(target_load=0.5, replica_requests_per_second=4.0))
    for _ in range(600):
        day.ask()
        day.now += 0.1
    assert day.figures[""] == ScalingFigures(5, pytest.approx(10.0, rel=0.1), 4.0)


def test_from_zero_the_capacity_of_before_is_remembered() -> None:
    day = Day()
    one = day.add_replica()
    day.serve(300, 120)
    before = day.figures["m"]
    assert before.replicas > 2
    day.replicas = []
    day.now += 1_000.0
    assert day.figures["m"].replicas == 0
    for _ in range(60):
        for _ in range(120):
            day.ask()
        day.now += 1.0
    assert day.figures["m"].replicas == pytest.approx(before.replicas, abs=1)
    day.replicas = [one]
    assert day.figures["m"].stable_rate == before.stable_rate


def test_only_what_a_replica_more_could_serve_counts() -> None:
    day = Day()
    for reason in (Reason.UNKNOWN_MODEL, Reason.OVER_BUDGET, Reason.MALFORMED, Reason.TENANT_QUEUE_FULL):
        day.refuse(day.ask(), reason)
    assert day.figures[""] == ScalingFigures(0, 0.0, None)
    for reason in (Reason.QUEUE_FULL, Reason.NO_REPLICA, Reason.QUEUE_TIMEOUT):
        day.refuse(day.ask(), reason)
    assert day.figures[""] == ScalingFigures(1, pytest.approx(3 / 60), None)


def test_adapters_count_for_their_base_model_and_unknown_names_together() -> None:
    day = Day()
    day.add_replica()
    for model in ("m", "adapter", "nobody's", "another"):
        day.ask(model)
    rates = {model: round(one.offered_rate * 60) for model, one in day.figures.items()}
    assert rates == {"m": 2, "": 2}


def test_names_that_clients_invent_are_bounded() -> None:
    day = Day()
    for number in range(5_000):
        day.refuse(day.ask(f"name-{number}"), Reason.NO_REPLICA)
    assert len(day.wanted._traffic) <= 201
    assert day.figures[""].offered_rate == pytest.approx(5_000 / 60)
    day.now += 1_000.0
    assert day.figures[""].offered_rate == 0
    assert not day.wanted._traffic


def test_a_listed_name_is_kept_apart_however_many_are_invented_before() -> None:
    day = Day()
    one = day.add_replica()
    for number in range(300):
        day.refuse(day.ask(f"name-{number}"), Reason.NO_REPLICA)
    day.answer(day.ask(), one)
    assert len(day.wanted._traffic) <= 201
    assert day.figures["m"].offered_rate == pytest.approx(1 / 60)
    assert day.figures["m"].replicas == 1


def test_a_pool_at_zero_keeps_its_traffic_while_names_are_invented() -> None:
    day = Day()
    one = day.add_replica()
    day.ask("adapter")
    assert day.figures["m"].replicas == 1
    one.listed({"m": {}}, {})  # nobody has the adapter now
    for number in range(300):
        day.refuse(day.ask(f"name-{number}"), Reason.NO_REPLICA)
    day.answer(day.ask(), one)
    assert "adapter" in day.wanted._traffic
    assert day.figures["m"].offered_rate == pytest.approx(2 / 60)


def test_embeddings_are_not_of_it() -> None:
    day = Day()
    request = gateway_request(1, {"input": "x"}, path="/v1/embeddings", model="m", arrived_at=day.now)
    day.wanted.arrived(request)
    day.refuse(request, Reason.NO_REPLICA)
    assert day.figures == {"": ScalingFigures(0, 0.0, None)}


def test_metrics_have_all_three() -> None:
    day = Day()
    day.add_replica()
    day.serve(100, 10)
    text = "".join(day.wanted.metrics())
    assert f'headway_replicas_wanted{{model_name="m"}} {float(day.figures["m"].replicas)}' in text
    assert "# TYPE headway_replica_stable_requests_per_second gauge" in text


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=60), st.floats(10, 1_000))
def test_a_window_holds_what_came_in_it(events: list[tuple[int, bool]], window: float) -> None:
    traffic, now, kept = RecentTraffic(window), 0.0, []
    for wait, is_answer in events:
        now += wait
        if is_answer:
            traffic.answered(now, 100, 50, 10, 1)
        else:
            traffic.arrived(now)
            kept.append(now)
    traffic.forget_old(now)
    counted = sum(sums.offered for sums in traffic.sums())
    slice_seconds = window / 30
    assert sum(at > now - window + slice_seconds for at in kept) <= counted
    assert counted <= sum(at > now - window - slice_seconds for at in kept)
    assert len(list(traffic.sums())) <= 30
    assert traffic.seconds(now) >= min(60.0, window) * (1 - 1e-9)


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(1e-3, 1.0)), min_size=8, max_size=64), st.floats(1, 2_000))
def test_a_larger_batch_is_never_believed_to_be_faster(seen: list[tuple[int, float]], batch: float) -> None:
    ordered = sorted(seen)
    assert 0 < pace_at(ordered, batch) <= pace_at(ordered, batch * 2)


def test_the_pace_follows_the_batch_where_batches_differ() -> None:
    seen = sorted((batch, 0.01 + 0.0001 * batch) for batch in range(10, 100))
    assert pace_at(seen, 200) == pytest.approx(0.03, rel=0.05)
    alike = [(50, 0.015)] * 20
    assert pace_at(alike, 200) == 0.015


def test_settings_can_be_replaced() -> None:
    day = Day(ScalingSettings(replica_requests_per_second=1.0))
    for _ in range(60):
        day.ask()
        day.now += 1.0
    before = day.figures[""].replicas
    day.settings = replace(day.settings, scaling=ScalingSettings(target_load=0.4, replica_requests_per_second=1.0))
    assert day.figures[""].replicas == pytest.approx(2 * before, abs=1)
