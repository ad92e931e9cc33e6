"""Views of a replica: the batch, the KV memory and the load that a policy may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
    """One replica as a routing policy sees it: the requests sent to it and not ended, and its own reports."""

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
        """When it last reported its load (metrics or a header), on the shell's clock; `-math.inf` if never."""
