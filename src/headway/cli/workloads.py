"""`headway workloads`: lists the traffic that is built in."""

from __future__ import annotations

import textwrap


def workloads() -> None:
    """List the built-in workloads, and the source of each."""
    from headway.bench.workloads import WORKLOADS

    width = max(map(len, WORKLOADS)) + 2
    for workload in WORKLOADS.values():
        print(textwrap.fill(workload.name.ljust(width) + workload.summary, 100, subsequent_indent=" " * width))
        print(
            textwrap.fill(f"source: {workload.source}", 100, initial_indent=" " * width, subsequent_indent=" " * width)
        )
    print("\n`headway compare NAME` replays one. --requests sets its length, --seed draws another.")
