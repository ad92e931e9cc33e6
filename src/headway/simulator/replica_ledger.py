"""What routing knows of one replica of a fleet: the requests sent to it and not ended, and what its engine tells.

The figures are counted as `headway serve` counts them (`gateway/replicas/in_flight.py`), in simulated time. Tokens that
came since a request was booked are taken off once a second, and only if a policy looks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request, RequestView, expected_output_tokens, uncached_prefill_tokens
from headway.simulator.rules import EngineRules

_REFRESH_SECONDS = 1.0


class EngineNews(Protocol):
    """What a replica's engine can tell at an instant of the fleet's clock, before it acts at that instant."""

    def cached_tokens(self, row: int, prompt_tokens: int, at_ps: int) -> int:
        """Prompt tokens of this row that its prefix cache holds."""

    def output_tokens(self, at_ps: int) -> Iterable[tuple[int, int]]:
        """(row, output tokens that have come out) of the requests that run."""

    def fresh_rows(self) -> Collection[int]:
        """Rows of the requests that were sent there and have never run there."""

    def waiting_requests(self) -> int:
        """How many requests wait there."""


class Instant:
    """The instant at which a fleet's clock stands, in picoseconds and in seconds."""

    __slots__ = ("now", "now_ps")

    def __init__(self) -> None:
        self.now_ps = 0
        self.now = 0.0


class _SentRequest:
    """A request inside, with its tokens as booked."""

    __slots__ = ("decode", "has_begun", "kv", "prefill", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.has_begun = False  # its first token came out
        self.prefill = uncached_prefill_tokens(request)
        self.decode = expected_output_tokens(request)
        self.kv = _kv_tokens(request, self.decode)


class ReplicaLedger:
    """One replica as its router sees it; satisfies `ReplicaView`. Its figures are exact at every instant.

    Attributes:
        id, requests_max, kv_tokens_max, costs, adapters: as in `ReplicaView`.
        index: its place in the fleet.
        is_up: whether it serves.
        is_draining: whether it is sent nothing new although it serves.
        rules: of its engine.
        requests: dispatched to it and not ended.
        sent: dispatched to it so far.
        completed: of these, served to their end.
    """

    def __init__(self, replica_id: str, index: int, rules: EngineRules, costs: ServiceCosts, instant: Instant) -> None:
        self.id = replica_id
        self.index = index
        self.rules = rules
        self.costs = costs
        self.requests = 0
        self.requests_max = rules.max_num_seqs
        self.adapters = None if rules.adapters is None else rules.adapters.names
        self.kv_tokens_max: int | None = rules.kv_blocks * rules.block_tokens
        self.prefill_tokens = 0
        self.is_up = True
        self.is_draining = False
        self.sent = 0
        self.completed = 0
        self.engine: EngineNews | None = None
        self._instant = instant
        self._decode_tokens = 0.0
        self._kv_tokens = 0
        self._refreshed_at = 0.0
        self._inside: dict[int, _SentRequest] = {}

    # What policies read

    @property
    def adapters_as_of(self) -> float:
        """Now, if it lists any."""
        return -math.inf if self.adapters is None else self._instant.now

    @property
    def as_of(self) -> float:
        """Now: nothing is stale."""
        return self._instant.now

    @property
    def costs_as_of(self) -> float:
        """Now."""
        return self._instant.now

    @property
    def cache_as_of(self) -> float:
        """Now."""
        return self._instant.now

    @property
    def decode_tokens(self) -> float:
        """Output tokens that its requests are still expected to produce."""
        if self._instant.now - self._refreshed_at >= _REFRESH_SECONDS:
            self._refresh()
        return self._decode_tokens

    @property
    def kv_tokens(self) -> int:
        """KV tokens that its requests hold, or will hold once their prompts are computed; half of what is to come."""
        if self._instant.now - self._refreshed_at >= _REFRESH_SECONDS:
            self._refresh()
        return self._kv_tokens

    def cached_prompt_tokens(self, request: RequestView, prefix: Sequence[int]) -> int | None:
        """Tokens at the start of the prompt that its prefix cache holds now."""
        if not prefix or self.engine is None:
            return 0
        assert isinstance(request.id, int)
        return self.engine.cached_tokens(request.id, request.prompt_tokens, self._instant.now_ps)

    # What happens

    def enter(self, row: int, request: Request, *, begun: bool = False) -> None:
        """A request is sent there; `begun`: it comes with its KV memory."""
        request.replica_id = self.id
        booked = self._inside[row] = _SentRequest(request)
        if begun:
            booked.prefill, booked.has_begun = 0, True
        self.prefill_tokens += booked.prefill
        self._decode_tokens += booked.decode
        self._kv_tokens += booked.kv
        self.requests += 1
        self.sent += 1

    def first_token(self, row: int) -> Request:
        """A request's prompt is computed."""
        booked = self._inside[row]
        self.prefill_tokens -= booked.prefill
        booked.prefill = 0
        booked.has_begun = True
        return booked.request

    def leave(self, row: int) -> Request:
        """A request ended there, or is lost."""
        booked = self._inside.pop(row)
        self.requests -= 1
        if self.requests:
            self.prefill_tokens -= booked.prefill
            self._decode_tokens -= booked.decode
            self._kv_tokens -= booked.kv
        else:
            self.prefill_tokens, self._decode_tokens, self._kv_tokens = 0, 0.0, 0  # no rounding is carried along
        return booked.request

    def request(self, row: int) -> Request:
        """A request inside."""
        return self._inside[row].request

    def has_begun(self, row: int) -> bool:
        """Whether the first token of a request inside came out."""
        return self._inside[row].has_begun

    @property
    def takes_requests(self) -> bool:
        """Whether it may be sent requests."""
        return self.is_up and not self.is_draining

    def holds(self, row: int) -> bool:
        """Whether a request is inside."""
        return row in self._inside

    def running(self) -> Iterable[tuple[int, int]]:
        """(row, output tokens that have come out) of the requests that run there now."""
        return () if self.engine is None else self.engine.output_tokens(self._instant.now_ps)

    def waiting_requests(self) -> int:
        """How many wait there, those that ran before included."""
        return 0 if self.engine is None else self.engine.waiting_requests()

    def fresh_rows(self) -> Collection[int]:
        """Rows of those that have never run there."""
        return () if self.engine is None else self.engine.fresh_rows()

    def inside(self) -> list[int]:
        """Rows of the requests there, in order of dispatch."""
        return list(self._inside)

    def has_room(self, request: Request, prefill_tokens_max: int) -> bool:
        """Whether `headway serve` would send one more: seats, prompts to compute, memory. If empty, always."""
        if not self.requests:
            return True
        if self.requests >= self.requests_max:
            return False
        if self.prefill_tokens and self.prefill_tokens + uncached_prefill_tokens(request) > prefill_tokens_max:
            return False
        return self.kv_tokens + _kv_tokens(request, expected_output_tokens(request)) <= (self.kv_tokens_max or 0)

    def counted_anew(self) -> tuple[float, int]:
        """(`decode_tokens`, `kv_tokens`) with every token that has come out; O(requests), and changes nothing."""
        produced = dict(() if self.engine is None else self.engine.output_tokens(self._instant.now_ps))
        decode_tokens, kv_tokens = 0.0, 0
        for row, booked in self._inside.items():
            request = booked.request
            tokens = produced.get(row, request.produced_tokens)
            assert request.estimate is not None, "the router stamps an estimate on every request"
            decode = request.estimate.remaining_mean(tokens)
            decode_tokens += decode
            kv_tokens += request.prompt_tokens + tokens + math.ceil(decode / 2)
        return decode_tokens, kv_tokens

    def _refresh(self) -> None:
        """Take off the tokens that came since the last refresh."""
        if self.engine is None:
            return
        self._refreshed_at = self._instant.now
        decode_tokens, kv_tokens = self._decode_tokens, self._kv_tokens
        for row, tokens in self.engine.output_tokens(self._instant.now_ps):
            booked = self._inside.get(row)
            if booked is None:
                continue
            request = booked.request
            came = tokens - request.produced_tokens
            if not came:
                continue
            request.produced_tokens = tokens
            decode = expected_output_tokens(request)
            # With most predictors as many are still to come as before.
            kv = booked.kv + came if decode == booked.decode else _kv_tokens(request, decode)
            decode_tokens = decode_tokens - booked.decode + decode
            kv_tokens += kv - booked.kv
            booked.decode, booked.kv = decode, kv
        self._decode_tokens, self._kv_tokens = decode_tokens, kv_tokens


class ReportedLedger:
    """What a replica reported some time ago; satisfies `ReplicaView`. Its prefix cache alone is known as it is now."""

    def __init__(self, ledger: ReplicaLedger) -> None:
        self.ledger = ledger
        self.id = ledger.id
        self.index = ledger.index
        self.requests_max = ledger.requests_max
        self.kv_tokens_max = ledger.kv_tokens_max
        self.adapters = ledger.adapters
        self.adapters_as_of = ledger.adapters_as_of
        self.costs = ledger.costs
        self.report()

    def report(self) -> None:
        """The replica reports again."""
        ledger = self.ledger
        self.requests = ledger.requests
        self.prefill_tokens = ledger.prefill_tokens
        self.decode_tokens, self.kv_tokens = ledger.counted_anew()
        self.as_of = self.costs_as_of = ledger.as_of

    @property
    def cache_as_of(self) -> float:
        """Now: an engine tells of its blocks as they come and go."""
        return self.ledger.cache_as_of

    def cached_prompt_tokens(self, request: RequestView, prefix: Sequence[int]) -> int | None:
        """As in `ReplicaLedger`."""
        return self.ledger.cached_prompt_tokens(request, prefix)


def _kv_tokens(request: Request, decode_tokens: float) -> int:
    return request.prompt_tokens + request.produced_tokens + math.ceil(decode_tokens / 2)
