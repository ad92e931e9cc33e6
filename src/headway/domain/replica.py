"""What a policy may know of the replica that would run a request."""

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
