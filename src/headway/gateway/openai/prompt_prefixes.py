"""Prefixes of a prompt: hashes of ever longer parts of it, from the first KiB to the whole, for routing.

Law: equal prompts up to a bound have equal hashes up to it. The bounds are the same for all prompts: 1, 2, … 8 KiB, and
then each about an eighth further than the one before it. So what two prompts share is known to within an eighth, and
the longest body that a gateway takes (`wire.body_bytes`) has about a hundred of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from hashlib import blake2b

_BLOCK_BYTES = 1_024
_GROWTH = 8  # each block is at least so small a share of what lies before it
_PIECE_BYTES = 1 << 20
"""Hashed between two turns of the event loop: about a millisecond."""


def _bounds() -> Iterator[int]:
    bound = 0
    while bound < 1 << 40:  # a TiB: no body is as long
        bound += _BLOCK_BYTES * max(1, bound // _BLOCK_BYTES // _GROWTH)
        yield bound


_BOUNDS = tuple(_bounds())


def prefix_bounds(prompt_bytes: int) -> tuple[int, ...]:
    """Bytes that each of the hashes of so long a prompt covers."""
    return _BOUNDS[: bisect_right(_BOUNDS, prompt_bytes)]


def prefix_hashes(model: str, prompt: bytes) -> tuple[int, ...]:
    """The hashes of a prompt, the shortest prefix first; none if it is shorter than a KiB."""
    hashes: tuple[int, ...] = ()
    if len(prompt) < _BLOCK_BYTES:
        return hashes
    for hashes in prefix_hashes_in_steps(model, prompt):  # noqa: B007 - the last ones are all
        pass
    return hashes


def prefix_hashes_in_steps(model: str, prompt: bytes) -> Iterator[tuple[int, ...]]:
    """The same, a bounded piece of the prompt at a step; the last ones are whole."""
    bounds, view = prefix_bounds(len(prompt)), memoryview(prompt)
    state = blake2b(model.encode(), digest_size=8)
    hashes: list[int] = []
    begin, pause = 0, _PIECE_BYTES
    for bound in bounds:
        while begin < bound:
            end = min(bound, pause)
            state.update(view[begin:end])
            begin = end
            if begin == pause:
                pause += _PIECE_BYTES
                yield ()
        hashes.append(int.from_bytes(state.digest(), "big"))
    yield tuple(hashes)
