"""Adapter clusters: LoRA adapters in use come first, within a bound; any ordering stands inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import cast

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import LaneId, OrderingPolicy, Rank
from headway.policies.inner_ordering import OrderingWithInner
from headway.policies.ordering.fcfs import Fcfs


class AdapterClusters(OrderingWithInner):
    """Requests whose LoRA adapter is in use come first, within a bound; any ordering inside.

    Idea: an adapter takes memory and a seat among those that an engine can hold, and loading it takes time. Once
        `adapters_max` are in use, requests of those adapters and of the base model are served before requests that
        would bring another adapter in. The inner ordering chooses among them (`adapter-clusters/priced-work`; FCFS if
        none is named). An adapter that has waited for long enough counts as if it was in use: one whose oldest request
        has seen `places_max` more leave the queue than came before it. In front of several replicas the adapters in use
        at all of them count.
    Source: S-LoRA, arXiv 2311.03285, section 5 (adapter clustering): at the limit of adapters, waiting requests whose
        adapter is on the GPU first, then in order of arrival. Deviations: the bound, which S-LoRA lacks; an adapter is
        on the GPU while a request of it runs; any inner ordering.
    Reads: the adapter, every arrival, admission and end, and what the inner ordering reads.
    Wins when: more adapters are asked for than an engine holds at once, and loading one takes long or makes requests
        wait.
    Loses when: an adapter is asked for seldom and its requests should be fast. Over `fcfs` each request is served at
        most `places_max` places later than in order of arrival. Over another ordering the adapter counts against it for
        no longer than that. Without adapters, and below `adapters_max`, it is the inner ordering.
    """

    def __init__(self, *, inner: OrderingPolicy | None = None, adapters_max: int = 8, places_max: int = 64) -> None:
        if adapters_max < 1:
            raise ValueError(f"adapters_max must be at least 1, got {adapters_max}")
        if places_max < 0:
            raise ValueError(f"places_max must not be negative, got {places_max}")
        super().__init__(inner or Fcfs())
        self._adapters_max = adapters_max
        self._places_max = places_max
        self._ranks: dict[RequestId, Rank] = {}  # of waiting requests, the inner ordering's
        self._arrived = 0  # into the queue, those that came back included
        self._left = 0  # out of the queue, whatever for
        self._waiting: dict[str | None, dict[RequestId, int]] = {}  # adapter → its requests' places in order of arrival
        self._running: dict[RequestId, str] = {}  # requests with an adapter → it
        self._in_use: Counter[str] = Counter()

    def lane(self, request: RequestView) -> tuple[str | None, LaneId]:
        """The adapter, and the lane the inner ordering gives."""
        return request.adapter, self._inner_lane(request)

    def rank(self, request: RequestView) -> Rank:
        """The inner ordering's."""
        rank = self._ranks[request.id] = self._inner.rank(request)
        return rank

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """Of the adapters that may be served, the lane that the inner ordering would serve next."""
        firsts = self._firsts(heads)
        return firsts[self._inner_choice({lane: heads[whole] for lane, whole in firsts.items()}, now)]

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The inner ordering's: which adapters may be served moves with events only, not with time."""
        return self._inner_change({lane: heads[whole] for lane, whole in self._firsts(heads).items()}, now)

    def observe(self, event: Event) -> None:
        """Keep count of what waits and runs; pass every event on to the inner ordering."""
        match event:
            case Arrived(request=request):
                self._wait(request)
            case Admitted(request=request):
                self._stop_waiting(request)
                if request.adapter is not None:
                    self._running[request.id] = request.adapter
                    self._in_use[request.adapter] += 1
            case Preempted(request=request):
                self._stop_running(request)
                self._wait(request)
            case Completed(request=request) | Cancelled(request=request):
                if not self._stop_waiting(request):
                    self._stop_running(request)
            case _:
                pass
        self._tell_inner(event)

    def _firsts(self, heads: Mapping[LaneId, RequestView]) -> dict[LaneId, LaneId]:
        """Inner lane → that lane of an adapter that may be served whose head the inner ordering puts first."""
        lanes = cast(Mapping[tuple[str | None, LaneId], RequestView], heads)
        may = self._may_be_served({adapter for adapter, _ in lanes})
        firsts: dict[LaneId, tuple[tuple[Rank, float, int], LaneId]] = {}
        for whole, head in lanes.items():
            adapter, inner = whole
            if adapter not in may:
                continue
            rank = self._ranks[head.id]
            order = (rank, head.arrived_at, self._waiting.get(adapter, {}).get(head.id, 0))
            if inner not in firsts or order < firsts[inner][0]:
                firsts[inner] = (order, whole)
        return {inner: whole for inner, (_, whole) in firsts.items()}

    def _may_be_served(self, adapters: Iterable[str | None]) -> set[str | None]:
        """The adapters in use, those that have waited for long enough, and the base model; all where none of these."""
        every = set(adapters)
        if len(self._in_use) < self._adapters_max:
            return every
        return {name for name in every if name is None or name in self._in_use or self._is_due(name)} or every

    def _is_due(self, adapter: str) -> bool:
        """Whether so many have left the queue since it was the turn of its oldest request in order of arrival."""
        places = self._waiting.get(adapter)
        return not places or self._left - next(iter(places.values())) >= self._places_max

    def _wait(self, request: RequestView) -> None:
        self._waiting.setdefault(request.adapter, {})[request.id] = self._arrived
        self._arrived += 1

    def _stop_waiting(self, request: RequestView) -> bool:
        """Whether it waited."""
        places = self._waiting.get(request.adapter)
        if places is None or places.pop(request.id, None) is None:
            return False
        if not places:
            del self._waiting[request.adapter]
        self._ranks.pop(request.id, None)
        self._left += 1
        return True

    def _stop_running(self, request: RequestView) -> None:
        adapter = self._running.pop(request.id, None)
        if adapter is not None:
            self._in_use[adapter] -= 1
            if not self._in_use[adapter]:
                del self._in_use[adapter]
