"""The ledger of one replica: the requests it was sent and has not finished, counted here and so never stale.

Laws: a request that enters leaves once; all sums are those of the requests inside. Satisfies `ReplicaView` and
`BatchView`, so that routing and admission policies read the same ledger.

The batch is every request sent to the replica, those in its engine's own queue included: they cannot be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, RequestId, RequestView, expected_output_tokens, uncached_prefill_tokens
from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes
from headway.gateway.replicas.known_prefix import known_tokens
from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.step_clock import DecodingStream, Progress, StepClock
from headway.gateway.settings import PolicySettings

BLOCK_TOKENS = 16
"""Of a KV block: vLLM's default, close enough where an engine has another."""
_UNKNOWN_MEMORY = MemoryView(blocks_free=1 << 40, blocks_total=1 << 40, block_tokens=BLOCK_TOKENS)


class _Booked(DecodingStream):
    """A request inside, with its prefill, decode and KV tokens as booked."""

    __slots__ = ("decode", "kv", "prefill", "request")

    def __init__(self, request: Request, answer: Progress | None) -> None:
        self.answer = answer  # written here too: a call less for every request
        self.sequences = request.sequences
        self.begins_at_step = None
        self.seen_tokens = 0
        self.late_tokens = 0
        self.request = request
        self.prefill = 0
        self.decode = 0.0
        self.kv = 0


class InFlight:
    """One replica's ledger. Times are seconds on the gateway's clock."""

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.costs = PolicySettings().costs  # until better ones are known
        self.costs_as_of = -math.inf
        self.adapters: frozenset[str] | None = None
        self.adapters_as_of = -math.inf
        self.confirmed = ConfirmedPrefixes()
        self.kv_blocks: KvBlockIndex | None = None  # where its KV events are read
        self.requests = 0  # dispatched and not ended
        self.answering = 0  # of them, those whose prompt is computed
        self.requests_max = 1
        self.kv_tokens_max: int | None = None
        self.as_of = -math.inf
        self.version = 0
        self.clock = StepClock()
        self.prefill_tokens = 0
        self.prefill_since = -math.inf  # since when it computes the first of those prompts, about
        self.decode_tokens = 0.0
        self.kv_tokens = 0
        self._inside: dict[RequestId, _Booked] = {}

    def __repr__(self) -> str:
        tokens = f"{self.prefill_tokens} prefill, {self.decode_tokens:.0f} decode, {self.kv_tokens} KV tokens"
        return f"<in flight at {self.id}: {self.requests}/{self.requests_max} requests, {tokens}>"

    @property
    def size(self) -> int:
        """The requests, as a batch."""
        return self.requests

    @property
    def decode_steps(self) -> int:
        """Steps that have ended, as of the latest `progress`; counted by tokens, see `StepClock`."""
        return self.clock.steps

    def running(self) -> Sequence[Request]:
        """The requests inside, in order of dispatch; their tokens are as of the latest `progress`."""
        return [booked.request for booked in self._inside.values()]

    def cached_prompt_tokens(self, request: RequestView, prefix: Sequence[int]) -> int | None:
        """See `ReplicaView`."""
        return known_tokens(self.kv_blocks, self.confirmed, prefix, request.prompt_tokens)

    @property
    def cache_as_of(self) -> float:
        """See `ReplicaView`."""
        return self.confirmed.as_of if self.kv_blocks is None else max(self.confirmed.as_of, self.kv_blocks.as_of)

    def progress(self, now: float) -> list[tuple[Request, int]]:
        """Every request inside with the output tokens that came by now; brings the step clock up to date. O(size)."""
        clock, inside = self.clock, list(self._inside.values())
        before = clock.steps
        clock.look(inside, now)
        self._clock_moved(before)
        return [(booked.request, clock.tokens_of(booked)) for booked in inside]

    def engine_counted(self, steps: float) -> None:
        """The engine's own counter of steps, as its metrics say; see `StepClock`. O(size)."""
        before = self.clock.steps
        self.clock.engine_counted(steps, self._inside.values())
        self._clock_moved(before)

    def _clock_moved(self, before: int) -> None:
        if self.clock.steps != before and any(booked.begins_at_step is None for booked in self._inside.values()):
            self.version += 1  # those produced nothing meanwhile, which no one may take for granted

    def enter(self, request: Request, answer: Progress | None = None) -> None:
        """A request was dispatched; `answer` shows its tokens as they come."""
        assert request.id not in self._inside, f"{request!r} was dispatched twice"
        booked = _Booked(request, answer)
        self._book(booked, uncached_prefill_tokens(request))
        self._inside[request.id] = booked
        self.requests += 1
        self.version += 1

    def first_token(self, request: Request) -> None:
        """Its prompt is computed."""
        booked = self._inside.get(request.id)
        if booked is not None and booked.begins_at_step is None:
            self.prefill_tokens -= booked.prefill
            booked.prefill = 0
            self.clock.begins(booked)
            self.answering += 1
            self.version += 1

    def leave(self, request: Request) -> None:
        """A request ended, or goes elsewhere."""
        booked = self._inside.pop(request.id)
        self._unbook(booked)
        self.clock.ends(booked, reversed(self._inside.values()))  # the latest stays longest: the next look is far off
        self.requests -= 1
        self.answering -= booked.begins_at_step is not None
        self.version += 1
        if not self.requests:
            self.decode_tokens, self.kv_tokens, self.prefill_tokens = 0.0, 0, 0  # no rounding is carried along

    def refresh(self) -> None:
        """Book all requests again, with the tokens produced by now. O(requests); about once a second."""
        self.confirmed.forget_excess()
        for booked in self._inside.values():
            self._unbook(booked)
            self._book(booked, booked.prefill)

    def held_tokens(self) -> int:
        """KV memory that they hold in the step to come, in whole blocks; shared ones count for each sharer."""
        blocks = 0
        for booked in self._inside.values():
            request = booked.request
            output = request.produced_tokens
            blocks += -(-(request.prompt_tokens + output) // BLOCK_TOKENS)
            blocks += (request.sequences - 1) * -(-output // BLOCK_TOKENS)
        return blocks * BLOCK_TOKENS

    def memory(self) -> MemoryView:
        """The replica's KV memory, for admission policies; without bound where nothing is known of it."""
        if self.kv_tokens_max is None:
            return _UNKNOWN_MEMORY
        free = max(0, self.kv_tokens_max - self.held_tokens())
        return MemoryView(free // BLOCK_TOKENS, self.kv_tokens_max // BLOCK_TOKENS, BLOCK_TOKENS)

    def kv_need(self, request: Request) -> int:
        """KV tokens a request holds on average until its end: what it has, and half of what is to come."""
        return _kv_tokens(request, expected_output_tokens(request))

    def _book(self, booked: _Booked, prefill: int) -> None:
        request = booked.request
        decode = expected_output_tokens(request)
        booked.prefill = prefill
        booked.decode = decode * request.sequences
        booked.kv = _kv_tokens(request, decode)
        self.prefill_tokens += prefill
        self.decode_tokens += booked.decode
        self.kv_tokens += booked.kv

    def _unbook(self, booked: _Booked) -> None:
        self.prefill_tokens -= booked.prefill
        self.decode_tokens = max(0.0, self.decode_tokens - booked.decode)
        self.kv_tokens -= booked.kv


def _kv_tokens(request: Request, decode: float) -> int:
    """KV tokens held on average: its sequences share the prompt, and each has an output of its own."""
    return request.prompt_tokens + request.sequences * (request.produced_tokens + math.ceil(decode / 2))
