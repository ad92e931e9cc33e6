"""Replicas of different speeds behind one dispatcher, on a clock of our own: learned apart, and routed to by speed."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random
from statistics import fmean

import pytest

from headway.domain.costs import ServiceCosts
from headway.gateway.openai.answer_readers import StreamReader
from headway.gateway.openai.usage import COMPLETION_USAGE, Usage
from headway.gateway.queueing.answer_forecast import is_due
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest, RequestMove
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import (
    HealthSettings,
    PolicySettings,
    ReplicaSettings,
    Settings,
)
from headway.policies.predicted_work import uncached_tokens
from tests.support.gateway_requests import gateway_request

FAST = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.01)
SLOW = ServiceCosts(prefill_seconds_per_token=4e-4, decode_seconds_per_token=0.04)
FIXED_SECONDS = 0.01
OUTPUT_TOKENS = 40


class Fleet:
    """Replicas that compute one prompt after the other, and decode any number of requests at their own pace."""

    def __init__(self, costs: dict[str, ServiceCosts], routing: str, *, streams: bool = True) -> None:
        self.now = 0.0
        self.costs = costs
        self.streams = streams
        self.free_at = dict.fromkeys(costs, 0.0)  # when its prompts will be computed
        self.sent: Counter[str] = Counter()
        self.seconds: list[float] = []  # from arrival to end
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._tickets = count()
        policies = PolicySettings(ordering="fcfs", routing=routing)
        settings = Settings(listen="127.0.0.1:0", policies=policies)
        self.dispatcher = Dispatcher(settings, lambda: self.now)
        self.replicas = []
        for name in costs:
            chosen = ReplicaSettings(url=f"http://{name}:1", name=name, max_requests=64, prefill_tokens=1_000_000)
            replica = UpstreamReplica(chosen, HealthSettings(), lambda: self.now)
            replica.probed(True)
            self.replicas.append(replica)
        self.dispatcher.replace(settings, self.replicas, self.now)

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._tickets), act))

    def run(self, requests: int, per_second: float, seed: int) -> Fleet:
        """So many requests at random times; the gateway sweeps every second."""
        draw, arrived = Random(seed), 0.0
        for number in range(1, requests + 1):
            arrived += draw.expovariate(per_second)
            tokens = round(draw.lognormvariate(6.0, 0.8))
            self.at(arrived, lambda number=number, tokens=tokens: self._arrive(number, tokens))  # type: ignore[misc]
        for second in range(1, int(arrived) + 60):
            self.at(float(second), lambda: self.dispatcher.sweep(self.now))
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        assert self.dispatcher.counts.inside == 0
        return self

    def _arrive(self, number: int, tokens: int) -> None:
        body = {"prompt": "x", "max_tokens": OUTPUT_TOKENS, "stream": self.streams}
        relay = Answer(self, gateway_request(number, body, prompt_tokens=tokens, arrived_at=self.now))
        assert self.dispatcher.announce(relay)  # type: ignore[arg-type]
        self.dispatcher.arrive(relay)  # type: ignore[arg-type]


class Answer:
    """Carries one request, and answers as its replica would."""

    def __init__(self, fleet: Fleet, request: GatewayRequest) -> None:
        self.fleet, self.request = fleet, request

    def dispatch(self, replica: UpstreamReplica) -> None:
        fleet, costs = self.fleet, self.fleet.costs[replica.name]
        fleet.sent[replica.name] += 1
        self.request.move(RequestMove.SENT)
        begins = max(fleet.now, fleet.free_at[replica.name])
        first = begins + FIXED_SECONDS + self.request.queued.prompt_tokens * costs.prefill_seconds_per_token
        fleet.free_at[replica.name] = first - FIXED_SECONDS
        last = first + (OUTPUT_TOKENS - 1) * costs.decode_seconds_per_token
        fleet.at(first if self.request.arrived.streams else last, self.begin)
        fleet.at(last, self.end)

    def begin(self) -> None:
        relayed = self.request.relayed
        self.request.move(RequestMove.ANSWERED)
        relayed.status, relayed.first_byte_at = 200, self.fleet.now
        relayed.reader = StreamReader(hide_usage=False, fields=COMPLETION_USAGE)
        self.fleet.dispatcher.first_byte(self.request)

    def end(self) -> None:
        self.request.relayed.usage = Usage(self.request.queued.prompt_tokens, OUTPUT_TOKENS, 0)
        self.fleet.seconds.append(self.fleet.now - self.request.arrived.arrived_at)
        self.fleet.dispatcher.end(self.request, Outcome.COMPLETED)

    def check_silence(self, now: float) -> None:
        pass


@pytest.mark.parametrize("load", [2.0, 8.0])
def test_each_replica_is_learned_as_fast_as_it_is(load: float) -> None:
    fleet = Fleet({"fast": FAST, "slow": SLOW}, "round-robin").run(300, load, seed=1)
    for replica in fleet.replicas:
        ledger, true = replica.ledger, fleet.costs[replica.name]
        assert ledger.costs_as_of > 0
        assert ledger.costs.prefill_seconds_per_token == pytest.approx(true.prefill_seconds_per_token, rel=0.15)
        assert ledger.costs.decode_seconds_per_token == pytest.approx(true.decode_seconds_per_token, rel=0.01)


def test_answers_in_one_piece_teach_what_takes_most_of_their_time() -> None:
    fleet = Fleet({"fast": FAST, "slow": SLOW}, "round-robin", streams=False).run(300, 2.0, seed=1)
    for replica in fleet.replicas:
        true = fleet.costs[replica.name].decode_seconds_per_token
        assert replica.learned_costs.decode_seconds_per_token == pytest.approx(true, rel=0.25)


def test_least_work_goes_by_the_speed_and_is_quicker_than_turns() -> None:
    turns = Fleet({"slow": SLOW, "fast": FAST}, "round-robin").run(600, 7.0, seed=2)
    speed = Fleet({"slow": SLOW, "fast": FAST}, "least-work").run(600, 7.0, seed=2)
    assert turns.sent["fast"] == 300
    assert speed.sent["fast"] > 2.5 * speed.sent["slow"]
    assert fmean(speed.seconds) < 0.75 * fmean(turns.seconds)


def test_a_new_replica_is_believed_to_be_as_fast_as_the_mean_until_it_has_shown_itself() -> None:
    fleet = Fleet({"fast": FAST, "slow": SLOW}, "round-robin").run(300, 2.0, seed=1)
    new = UpstreamReplica(ReplicaSettings(url="http://new:1", name="new"), HealthSettings(), lambda: fleet.now)
    fleet.dispatcher.replace(fleet.dispatcher.settings, [*fleet.replicas, new], fleet.now)
    assert new.ledger.costs_as_of == -math.inf
    assert new.ledger.costs.decode_seconds_per_token == pytest.approx(0.025, rel=0.01)


def test_a_slow_replica_is_not_a_sick_one() -> None:
    """One piece of 40 tokens takes the slow one 1.6 s and more; by the configured 0.02 s a token it would be due."""
    slow = Fleet({"slow": ServiceCosts(4e-4, 0.2)}, "least-work").run(100, 0.1, seed=3)
    body = {"prompt": "x", "max_tokens": OUTPUT_TOKENS}
    waiting = gateway_request(1, body, prompt_tokens=100, arrived_at=slow.now)
    queued, configured = waiting.queued, slow.dispatcher.settings.policies.costs
    queued.estimate, queued.dispatched_at = None, slow.now
    relay = Answer(slow, waiting)
    slow.dispatcher.announce(relay)  # type: ignore[arg-type]
    slow.dispatcher.arrive(relay)  # type: ignore[arg-type]
    assert queued.estimate is not None
    expected = queued.estimate.remaining_mean(0) * 0.2
    assert not is_due(waiting, configured, slow.now + 1.5 * expected)
    assert is_due(waiting, configured, slow.now + 2.5 * expected)


def test_what_is_booked_at_a_replica_is_less_what_it_confirmed() -> None:
    fleet = Fleet({"none": FAST, "holds": FAST}, "least-work")
    none, holds = [replica.ledger for replica in fleet.replicas]
    body = {"prompt": "x" * 8_192, "max_tokens": OUTPUT_TOKENS, "stream": True}
    first = gateway_request(1, body, prompt_tokens=2_048, arrived_at=0.0, session="s")
    prefix = first.arrived.prompt.hashes
    assert len(prefix) == 8
    holds.confirmed.answered(prefix[:6], [256 * number for number in range(1, 7)], 1, 0, 0.0)
    first.queued.cached_prompt_tokens = 2_000  # of the session, wherever its last turn was
    relay = Answer(fleet, first)
    fleet.dispatcher.announce(relay)  # type: ignore[arg-type]
    fleet.dispatcher.arrive(relay)  # type: ignore[arg-type]
    assert fleet.sent == {"none": 1}, "it has told nothing of its cache: the session's estimate stands"
    assert (none.prefill_tokens, first.queued.confirmed_tokens) == (48, 0)
    second = gateway_request(2, body, prompt_tokens=2_048, arrived_at=0.0)
    relay = Answer(fleet, second)
    fleet.dispatcher.announce(relay)  # type: ignore[arg-type]
    fleet.dispatcher.arrive(relay)  # type: ignore[arg-type]
    assert fleet.sent == {"none": 1, "holds": 1}
    assert (holds.prefill_tokens, second.queued.confirmed_tokens) == (512, 1_536)


def test_of_a_prompt_too_short_for_a_prefix_routing_and_booking_take_the_same() -> None:
    fleet = Fleet({"told": FAST}, "least-work")
    (ledger,) = [replica.ledger for replica in fleet.replicas]
    ledger.confirmed.answered([1], [256], 1, 0, 0.0)
    short = gateway_request(1, {"prompt": "x" * 500, "stream": True}, prompt_tokens=200, arrived_at=0.0, session="s")
    short.queued.cached_prompt_tokens = 150  # of the session
    assert short.arrived.prompt.hashes == ()
    assert uncached_tokens(short.queued, short.arrived.prompt.hashes, ledger) == 50
    relay = Answer(fleet, short)
    fleet.dispatcher.announce(relay)  # type: ignore[arg-type]
    fleet.dispatcher.arrive(relay)  # type: ignore[arg-type]
    assert ledger.prefill_tokens == 50
