"""Pacing of reads: of a crowd of packets that come at the same moment, some are read at a turn of the event loop.

Laws: packets are read in the order in which they came; between two handfuls of a crowd the loop reads and writes
whatever else is ready; outside a crowd a packet is read at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

PACKETS_A_TURN = 32
"""Each takes some 0.1 ms where a whole request is in it."""


class ReadPacer:
    """Gives the clients of one address their turns, or the connections to one replica."""

    def __init__(self, packets_a_turn: int = PACKETS_A_TURN) -> None:
        self._packets_a_turn = packets_a_turn
        self._read = 0  # packets at this turn of the loop
        self._waiting: deque[Callable[[], None]] = deque()

    def may_read(self) -> bool:
        """Whether a packet that came now is read now; else it waits (`wait`)."""
        if self._waiting or self._read >= self._packets_a_turn:
            return False
        if not self._read:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._read += 1
        return True

    def wait(self, read: Callable[[], None]) -> None:
        """Call `read` at its turn."""
        self._waiting.append(read)

    def _next_turn(self) -> None:
        self._read = min(self._packets_a_turn, len(self._waiting))
        if not self._read:
            return
        asyncio.get_running_loop().call_soon(self._next_turn)  # first: what raises must not stop those behind it
        for _ in range(self._read):
            self._waiting.popleft()()
