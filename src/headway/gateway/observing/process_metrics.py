"""Metrics of the gateway's process, by the names that Prometheus's own clients give them, and of its build.

Source of the names: prometheus.io/docs/instrumenting/writing_clientlibs, "Process metrics". What the system does not
tell is left out: all are there on Linux.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from headway.gateway.observing import prometheus_text as prometheus
from headway.version import __version__

_PROCESS = Path("/proc/self")
_FILES_A_LINE = 20
"""Open files counted between two lines, where the kernel does not count: after some lines the event loop goes on."""


def build_metrics() -> Iterator[str]:
    """The version of this package and of Python."""
    labels = {"version": __version__, "python": platform.python_version()}
    what = "1, with the versions of the gateway and of Python as labels"
    yield prometheus.gauge("headway_build_info", what, [(labels, 1)])


def process_metrics() -> Iterator[str]:
    """What the process uses of the machine."""
    yield prometheus.counter(
        "process_cpu_seconds", "Total user and system CPU time spent in seconds", [({}, time.process_time())]
    )
    started_at = _started_at()
    if started_at is not None:
        yield prometheus.gauge(
            "process_start_time_seconds", "Start time of the process since unix epoch in seconds", [({}, started_at)]
        )
    pages = _memory_pages()
    if pages is not None:
        size = os.sysconf("SC_PAGE_SIZE")
        yield prometheus.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", [({}, pages[0] * size)])
        yield prometheus.gauge(
            "process_resident_memory_bytes", "Resident memory size in bytes", [({}, pages[1] * size)]
        )
    yield from _descriptors()


def files_in(folder: Path) -> Iterator[int]:
    """How many files a folder holds, after every few of them; the last number is that of all. Raises OSError."""
    counted = 0
    with os.scandir(folder) as entries:
        for _ in entries:
            counted += 1
            if counted % _FILES_A_LINE == 0:
                yield counted
    yield counted


def _descriptors() -> Iterator[str]:
    folder, open_fds = _PROCESS / "fd", 0
    try:
        open_fds = folder.stat().st_size  # from Linux 6.2 on, else 0
        if not open_fds:
            for counted in files_in(folder):
                yield ""
                open_fds = counted - 1  # less that of the folder itself
    except OSError:
        pass  # no Linux
    if open_fds:
        yield prometheus.gauge("process_open_fds", "Number of open file descriptors", [({}, open_fds)])
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bound = float("inf") if soft == resource.RLIM_INFINITY else soft
    yield prometheus.gauge("process_max_fds", "Maximum number of open file descriptors", [({}, bound)])


def _memory_pages() -> tuple[int, int] | None:
    """Virtual and resident memory, in pages."""
    try:
        virtual, resident, *_ = (_PROCESS / "statm").read_text("ascii").split()
    except OSError:
        return None
    return int(virtual), int(resident)


@cache
def _started_at() -> float | None:
    """When the process started, seconds since 1970."""
    try:
        after_name = (_PROCESS / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text("ascii").splitlines() if line.startswith("btime "))
    except (OSError, StopIteration):
        return None
    ticks = int(after_name[19])  # field 22 of proc(5), two of which stand before
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
