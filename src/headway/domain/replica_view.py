"""Views of a replica: the batch, the KV memory and the load that a policy may read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView


class MemoryView(NamedTuple):
    """KV memory of one replica at one moment, in blocks."""

    blocks_free: int
    blocks_total: int
    block_tokens: int


class BatchView(Protocol):
    """The requests that run on one replica now."""

    @property
    def version(self) -> int:
        """Changes whenever a request joins, leaves or completes its prefill; while it stays, what was derived holds."""

    @property
    def decode_steps(self) -> int:
        """Steps that have ended: within one `version`, each decoding request produced one token per step."""

    @property
    def size(self) -> int:
        """Requests running."""

    def running(self) -> Sequence[RequestView]:
        """The requests in order of admission, `produced_tokens` up to date. Costs O(size): ask once per version."""


class ReplicaView(Protocol):
    """One replica as a routing policy sees it: the requests sent to it and not ended, and what is known of it.

    What the shell counts itself is never stale. What comes from the replica has an age: each `…as_of` is when it came,
    seconds on the shell's clock, and `-math.inf` if it never did.
    """

    @property
    def id(self) -> str:
        """Its name, stable over its life."""

    @property
    def requests(self) -> int:
        """Requests dispatched to it and not ended."""

    @property
    def requests_max(self) -> int:
        """Requests it may have at once; never below 1."""

    @property
    def prefill_tokens(self) -> int:
        """Uncached prompt tokens of its requests whose first token has not come."""

    @property
    def decode_tokens(self) -> float:
        """Output tokens that its requests are still expected to produce."""

    @property
    def kv_tokens(self) -> int:
        """KV tokens that its requests hold, or will hold once their prompts are computed."""

    @property
    def kv_tokens_max(self) -> int | None:
        """Its KV memory in tokens; None where unknown."""

    @property
    def as_of(self) -> float:
        """When it last reported its load (metrics or a header): its KV memory, and requests of others."""

    @property
    def costs(self) -> ServiceCosts:
        """Its seconds per token: its own, else the mean of the other replicas', else those of the configuration."""

    @property
    def costs_as_of(self) -> float:
        """When its own costs were measured last; `-math.inf` while `costs` are not its own."""

    @property
    def adapters(self) -> frozenset[str] | None:
        """Names of the LoRA adapters that it serves; None where unknown."""

    @property
    def adapters_as_of(self) -> float:
        """When it listed its adapters last."""

    def cached_prompt_tokens(self, request: RequestView, prefix: Sequence[int]) -> int | None:
        """Tokens at the start of the request's prompt that it has confirmed to hold in its prefix cache.

        `prefix` is what `RoutingPolicy.choose` is given. None where it has never told anything of its cache. Less than
        the whole prompt: an engine computes at least the last token.
        """

    @property
    def cache_as_of(self) -> float:
        """When it told of its prefix cache last."""


class SentRequest(NamedTuple):
    """A request at a replica as a rescheduling policy sees it.

    Attributes:
        request: what is known of it.
        prefix: hashes of ever longer prefixes of its prompt, the shortest first; empty where unknown.
        kv_tokens: tokens whose KV it holds there, 0 while it waits; blocks shared with others are counted for each.
        may_move: whether it may still go elsewhere: that is bounded for each request.
    """

    request: RequestView
    prefix: Sequence[int]
    kv_tokens: int
    may_move: bool


class OccupiedReplica(NamedTuple):
    """One replica as a rescheduling policy sees it: its figures, and the requests that are there.

    Attributes:
        replica: its figures.
        waiting: what was sent there and waits, first those that ran already, then the others in order of dispatch.
            Only what has not begun may move.
        running: what runs there, in order of dispatch.
        waiting_requests: all that wait there, those of others included.
        is_draining: it is to be emptied: nothing is sent there any more.
        contents_as_of: when `waiting` and `running` were so, seconds on the shell's clock.
        could_take: whether it can serve a request, and its shell would send it there now.
    """

    replica: ReplicaView
    waiting: Sequence[SentRequest]
    running: Sequence[SentRequest]
    waiting_requests: int
    is_draining: bool
    contents_as_of: float
    could_take: Callable[[RequestView], bool]
