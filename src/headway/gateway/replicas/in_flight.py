"""The ledger of one replica: the requests it was sent and has not finished, counted here and so never stale.

Laws: a request that enters leaves once; all sums are those of the requests inside. Satisfies `ReplicaView` and
`BatchView`, so that routing and admission policies read the same ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.request import Request, RequestId, expected_output_tokens, uncached_prefill_tokens


class InFlight:
    """One replica's ledger. Times are seconds on the gateway's clock."""

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.requests = 0  # dispatched and not ended
        self.requests_max = 1
        self.kv_tokens_max: int | None = None
        self.as_of = -math.inf
        self.version = 0
        self.decode_steps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0.0
        self.kv_tokens = 0
        self._inside: dict[RequestId, tuple[Request, int, float, int]] = {}  # prefill, decode and KV tokens as booked

    def __repr__(self) -> str:
        tokens = f"{self.prefill_tokens} prefill, {self.decode_tokens:.0f} decode, {self.kv_tokens} KV tokens"
        return f"<in flight at {self.id}: {self.requests}/{self.requests_max} requests, {tokens}>"

    @property
    def size(self) -> int:
        """The requests, as a batch."""
        return self.requests

    def running(self) -> Sequence[Request]:
        """The requests inside, in order of dispatch."""
        return [entry[0] for entry in self._inside.values()]

    def enter(self, request: Request) -> None:
        """A request was dispatched."""
        assert request.id not in self._inside, f"{request!r} was dispatched twice"
        self._book(request, uncached_prefill_tokens(request))
        self.requests += 1
        self.version += 1

    def first_token(self, request: Request) -> None:
        """Its prompt is computed."""
        entry = self._inside.get(request.id)
        if entry is not None and entry[1]:
            self.prefill_tokens -= entry[1]
            self._inside[request.id] = (entry[0], 0, entry[2], entry[3])
            self.version += 1

    def leave(self, request: Request) -> None:
        """A request ended, or goes elsewhere."""
        self._unbook(request.id)
        self.requests -= 1
        self.version += 1
        if not self.requests:
            self.decode_tokens, self.kv_tokens, self.prefill_tokens = 0.0, 0, 0  # no rounding is carried along

    def refresh(self) -> None:
        """Book all requests again, with the tokens produced by now. O(requests); about once a second."""
        for request, prefill, _, _ in list(self._inside.values()):
            self._unbook(request.id)
            self._book(request, prefill)
        self.decode_steps += 1

    def kv_need(self, request: Request) -> int:
        """KV tokens a request holds on average until its end: what it has, and half of what is to come."""
        return _kv_tokens(request, expected_output_tokens(request))

    def _book(self, request: Request, prefill: int) -> None:
        decode = expected_output_tokens(request)
        kv = _kv_tokens(request, decode)
        decode *= request.sequences
        self._inside[request.id] = (request, prefill, decode, kv)
        self.prefill_tokens += prefill
        self.decode_tokens += decode
        self.kv_tokens += kv

    def _unbook(self, request_id: RequestId) -> None:
        _, prefill, decode, kv = self._inside.pop(request_id)
        self.prefill_tokens -= prefill
        self.decode_tokens = max(0.0, self.decode_tokens - decode)
        self.kv_tokens -= kv


def _kv_tokens(request: Request, decode: float) -> int:
    """KV tokens held on average: its sequences share the prompt, and each has an output of its own."""
    return request.prompt_tokens + request.sequences * (request.produced_tokens + math.ceil(decode / 2))
