"""Wanted replicas: how many would keep the traffic of the last minutes stable, for autoscalers.

The rule is in `scheduling/stability.py`. What it needs is what the gateway sees: requests that came, the lengths of
those answered, the memory and the limit of each replica, and what a token takes there.

Laws: without traffic 0; with a request inside, or one that came lately, at least 1; while the capacity of a replica is
unknown, as many as there are now.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median

from headway.domain.request import expected_output_tokens
from headway.gateway.observing import prometheus_text as prometheus
from headway.gateway.observing.recent_traffic import RecentTraffic, TrafficSums
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.queue_keys import shared_model
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.model_lists import is_listed
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings
from headway.scheduling.stability import (
    RequestNeeds,
    StepCapacity,
    full_batch,
    replicas_for,
    stable_rate,
)

_NAMES_MAX = 200  # of models that are kept apart; each takes some 15 us to add up
_ANSWERS = 64  # the latest ones of a replica
_ANSWERS_MIN = 8  # before anything is believed
_TOKENS_MIN = 8  # of an answer whose pace counts
_SPREAD = 2.0  # the large batches are so many times the small ones where a line is drawn
_PROMPT_SHARE_MAX = 0.9
_NOT_OFFERED = frozenset(  # refused for what the client did or owes, which no replica more would change
    {
        Reason.MALFORMED,
        Reason.OVERLOADED,
        Reason.UNAUTHORISED,
        Reason.UNKNOWN_MODEL,
        Reason.OVER_BUDGET,
        Reason.TENANT_QUEUE_FULL,
        Reason.DRAINING,
    }
)


@dataclass(frozen=True, slots=True)
class ScalingFigures:
    """Of one model.

    Attributes:
        replicas: wanted.
        offered_rate: requests a second that came.
        stable_rate: requests a second up to which one replica is stable, as known last; None if it never was.
    """

    replicas: int
    offered_rate: float
    stable_rate: float | None


class WantedReplicas:
    """One per process. `clock` gives seconds. Names of models are kept apart: listed ones, then the first asked for."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        replicas: Callable[[], Sequence[UpstreamReplica]],
        clock: Callable[[], float],
    ) -> None:
        """`settings` and `replicas` are asked again each time."""
        self._settings = settings
        self._replicas = replicas
        self._clock = clock
        self._models_max = min(_NAMES_MAX, settings().metrics_series_max)
        self._traffic: dict[str, RecentTraffic] = {}  # by the name in the request
        self._inside: dict[int, str] = {}  # request -> that name
        self._models: dict[str, str] = {}  # names that a replica listed at some time -> the model that they share
        self._paces: dict[str, deque[tuple[int, float]]] = {}  # replica -> (streams at once, seconds per token)
        self._needs: dict[str, RequestNeeds] = {}  # as known last, by model
        self._rates: dict[str, float] = {}  # likewise

    # What is seen

    def arrived(self, request: GatewayRequest) -> None:
        """A request came."""
        arrived = request.arrived
        if not arrived.endpoint.is_generation:
            return
        name = arrived.model
        traffic = self._traffic.get(name)
        if traffic is None:
            if len(self._traffic) >= self._models_max and not self._has_made_room(name):
                name = ""
            traffic = self._traffic.setdefault(name, RecentTraffic(self._settings().scaling.window_seconds))
        self._inside[arrived.number] = name
        traffic.arrived(arrived.arrived_at)

    def _has_made_room(self, name: str) -> bool:
        """Let a name that no replica ever listed go for one that some replica does; that of a pool at zero stays."""
        replicas = self._replicas()
        if not is_listed(replicas, name):
            return False
        unknown = (one for one in self._traffic if one and one not in self._models)
        gone = next((one for one in unknown if not is_listed(replicas, one)), None)
        if gone is not None:
            del self._traffic[gone]
        return gone is not None

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""
        arrived, queued, relayed = request.arrived, request.queued, request.relayed
        name = self._inside.pop(arrived.number, None)
        traffic = None if name is None else self._traffic.get(name)
        if traffic is None:
            return
        if reason in _NOT_OFFERED:
            traffic.arrived(arrived.arrived_at, -1)
        if outcome is not Outcome.COMPLETED or relayed.status != 200:
            return
        usage = relayed.usage
        if usage is not None and usage.prompt_tokens:
            prompt, cached, output = usage.prompt_tokens, usage.cached_tokens, usage.output_tokens
        else:  # not counted, or not shown
            prompt, cached = queued.prompt_tokens, queued.cached_prompt_tokens
            output = relayed.output_tokens or round(expected_output_tokens(queued) * queued.sequences)
        traffic.answered(now, prompt, max(1, prompt - cached), output, queued.sequences)
        each = output / queued.sequences
        if arrived.streams and relayed.first_byte_at is not None and each >= _TOKENS_MIN and queued.replica is not None:
            replica = queued.replica
            paces = self._paces.setdefault(replica.name, deque(maxlen=_ANSWERS))
            paces.append((replica.ledger.answering + 1, (now - relayed.first_byte_at) / (each - 1)))

    # What follows

    def figures(self) -> dict[str, ScalingFigures]:
        """Of each model that is listed or was asked for lately; "" for names that no replica ever listed."""
        now, replicas = self._clock(), self._replicas()
        self._look(replicas, now)
        groups: dict[str, list[RecentTraffic]] = {model: [] for model in self._known_models(replicas) or [""]}
        inside: Counter[str] = Counter()
        for name, traffic in self._traffic.items():
            groups.setdefault(self._models.get(name, ""), []).append(traffic)
        for name in self._inside.values():
            inside[self._models.get(name, "")] += 1
        return {model: self._figures_of(model, traffic, inside[model], now) for model, traffic in groups.items()}

    def _look(self, replicas: Sequence[UpstreamReplica], now: float) -> None:
        """Learn what names mean now, and forget what is old."""
        settings = self._settings()
        used = set(self._inside.values())
        for name, traffic in list(self._traffic.items()):
            if is_listed(replicas, name) and (name in self._models or len(self._models) < self._models_max):
                self._models[name] = shared_model(name, replicas, settings)
            if traffic.forget_old(now) and name not in used:
                del self._traffic[name]
        here = {replica.name for replica in replicas}
        for gone in self._paces.keys() - here:
            del self._paces[gone]

    def _known_models(self, replicas: Sequence[UpstreamReplica]) -> list[str]:
        """Those listed now, and those that had traffic; adapters are part of their base models."""
        listed = (
            name
            for replica in replicas
            for name in replica.state.models or ()
            if name not in replica.state.adapter_parents
        )
        return list(dict.fromkeys([*self._models.values(), *islice(listed, self._models_max)]))

    def _figures_of(self, model: str, traffic: Sequence[RecentTraffic], inside: int, now: float) -> ScalingFigures:
        sums = TrafficSums()
        seconds = max([one.seconds(now) for one in traffic], default=1.0)
        for one in traffic:
            for part in one.sums():
                sums.add(part)
        rate = sums.offered / seconds
        serving = [replica for replica in self._replicas() if replica.serves(model)]
        known = self._stable_rate(model, sums, seconds, serving)
        least = 1 if inside or sums.offered else 0
        if known is None:
            wanted = least and max(least, sum(replica.is_healthy for replica in serving))
        else:
            wanted = max(least, replicas_for(rate, known, self._settings().scaling.target_load))
        return ScalingFigures(wanted, rate, known)

    def _stable_rate(
        self, model: str, sums: TrafficSums, seconds: float, serving: Sequence[UpstreamReplica]
    ) -> float | None:
        """Of one replica: as configured, else the mean of those whose capacity is known, else as known last."""
        given = self._settings().scaling.replica_requests_per_second
        if given is not None:
            return given
        needs = sums.needs()
        if needs is None:
            needs = self._needs.get(model)
        else:
            self._needs[model] = needs
        if needs is not None:
            healthy = [replica for replica in serving if replica.is_healthy]
            answered_rate = sums.answered / seconds / max(1, len(healthy))
            rates = [self._rate_of(replica, needs, answered_rate) for replica in healthy]
            known = [rate for rate in rates if rate is not None]
            if known:
                self._rates[model] = fmean(known)
        return self._rates.get(model)

    def _rate_of(self, replica: UpstreamReplica, needs: RequestNeeds, answered_rate: float) -> float | None:
        """Of this replica, whose share of the traffic is `answered_rate`; None where too little is known of it."""
        prompt_seconds = replica.learned_costs.prefill_seconds_per_token
        paces = self._paces.get(replica.name, ())
        if prompt_seconds is None or len(paces) < _ANSWERS_MIN:
            return None
        kv_tokens = replica.ledger.kv_tokens_max
        seats = replica.limit.requests_max if replica.limit.is_known else None
        batch = full_batch(needs, kv_tokens, seats)
        if batch is None:
            return None
        pace = pace_at(sorted(paces), batch)
        prompt_share = min(_PROMPT_SHARE_MAX, answered_rate * needs.computed_prompt_tokens * prompt_seconds)
        return stable_rate(needs, StepCapacity(kv_tokens, seats, prompt_seconds, pace * (1 - prompt_share)))

    def metrics(self) -> Iterator[str]:
        """In Prometheus's text format."""
        figures = self.figures()
        for name, help_text, samples in (
            (
                "headway_replicas_wanted",
                "Replicas that would keep the traffic of the last minutes stable at `scaling.target_load`",
                {model: float(one.replicas) for model, one in figures.items()},
            ),
            (
                "headway_offered_requests_per_second",
                "Requests a second that came in the last minutes (`scaling.window_seconds`)",
                {model: one.offered_rate for model, one in figures.items()},
            ),
            (
                "headway_replica_stable_requests_per_second",
                "Requests a second up to which one replica's queue is stable, as far as known",
                {model: one.stable_rate for model, one in figures.items() if one.stable_rate is not None},
            ),
        ):
            yield prometheus.gauge(
                name, help_text, [({"model_name": model}, figure) for model, figure in samples.items()]
            )


def pace_at(ordered: Sequence[tuple[int, float]], batch: float) -> float:
    """Seconds per token in a batch of this size: by the line through the medians of the smallest and of the largest
    third of the batches that were seen, where those differ enough; else the median of what was seen.

    A larger batch is never faster, and a smaller one takes at least half of what was seen.
    """
    seen = median([pace for _, pace in ordered])
    third = len(ordered) // 3
    small, large = ordered[:third], ordered[-third:]
    few, many = median([size for size, _ in small]), median([size for size, _ in large])
    if many < _SPREAD * few:
        return seen
    slope = (median([pace for _, pace in large]) - median([pace for _, pace in small])) / (many - few)
    middle = median([size for size, _ in ordered])
    return max(seen / 2, seen + max(0.0, slope) * (batch - middle))
