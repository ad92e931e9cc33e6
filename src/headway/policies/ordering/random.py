"""Random order: a baseline that knows nothing."""

from __future__ import annotations

from hashlib import blake2b

from headway.domain.request import RequestView


class Random:
    """A random order, the same for the same seed.

    Idea: draw a lot per request, independent of everything about it.
    Source: none; a yardstick. What an order gains over this one it gains by what it reads.
    Reads: the request's id and the seed.
    Wins when: never on purpose; its mean is FCFS's wherever lots and sizes are independent.
    Loses when: the tail matters: an unlucky lot waits as long as luckier ones keep coming.
    """

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def rank(self, request: RequestView) -> float:
        """A lot in [0, 1), a hash of seed and id: it does not depend on other requests, or on time."""
        digest = blake2b(f"{self._seed}/{request.id!r}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
