"""How much of the machine others used while something was measured, and waiting until they are still; Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """Counts the processor time of others from its creation on: everybody's less that of `roots` and their children."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = tuple(roots)
        self._began = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _tree_seconds(self._roots)

    def others_share(self) -> float:
        """Share of all cores that others used since then, 0 to 1."""
        seconds = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        busy, own = _busy_seconds() - self._busy, _tree_seconds(self._roots) - self._own
        return max(0.0, busy - own) / seconds


def wait_for_quiet(roots: Iterable[int], *, share: float, at_most_seconds: float) -> bool:
    """Whether others used less than `share` of the machine for three seconds on end before time was up."""
    until, own = time.monotonic() + at_most_seconds, tuple(roots)
    while time.monotonic() < until:
        watch = Watch(own)
        time.sleep(3)
        if watch.others_share() < share:
            return True
    return False


def _busy_seconds() -> float:
    """Of all processors since the machine started: user, nice, system, interrupts and what a hypervisor took."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def _tree_seconds(roots: tuple[int, ...]) -> float:
    """Processor time of these processes and all below them, ended children included."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(int(field) for field in fields[11:15]) / _TICKS
    return sum(seconds for process, seconds in used.items() if _is_below(process, roots, parents))


def _is_below(process: int, roots: tuple[int, ...], parents: dict[int, int]) -> bool:
    while process and process not in roots:
        process = parents.get(process, 0)
    return process in roots
