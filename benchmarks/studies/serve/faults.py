"""Half an hour of faults: every request exactly once, whatever replicas and clients do?

    python -m benchmarks.studies.serve.faults [--minutes 30] [--seed 0] [--headway COMMAND]

Days of the fault harness (tests/support/fault_harness.py), one after the other, on one `headway serve`: each fault
alone, then all together, odd bodies, replicas that come and go; again with another seed until the time is up. Prints
Markdown for docs/results/serve.md; the exit status is 1 if a law was broken. `--headway` names another command than
this environment's. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.studies.serve.processes import Gate
from tests.support.fault_harness import (
    ALL_FAULTS,
    BESIDE_DAYS,
    FLAPPING,
    MANY_CLIENTS,
    ODD_CLIENTS,
    Book,
    Plan,
    gateway_under_test,
    one_fault,
)
from tests.support.replica_faults import FAULTS
from tests.support.serve_process import HEADWAY

DAYS_A_LINE = 10  # of progress
SHOWN = 3  # broken laws of one day that are printed
DAYS: dict[str, list[Plan]] = {
    "one fault before the first byte, or after it": [one_fault(name) for name in FAULTS if not FAULTS[name].is_legal],
    "odd and right answers, or more than an answer": [one_fault(name) for name in FAULTS if FAULTS[name].is_legal],
    "all faults at once, clients that leave": [ALL_FAULTS] * 4,
    "odd bodies, clients that leave": [ODD_CLIENTS] * 2,
    "clients of many kinds": [MANY_CLIENTS] * 2,
    "replicas that come and go": [FLAPPING] * 2,
    "misbehaviour beside the API": BESIDE_DAYS,
}
HEAD = (
    "| day | days | sent | whole | told | left | executed twice | more than twice | lost | wrong | hung | errors "
    "| longest pause of the loop, ms (longest that its thread computed) "
    "| longest wait for `/health`, ms (the clients' own loop) |"
)


class Sums:
    """What one kind of day came to."""

    def __init__(self) -> None:
        self.days = 0
        self.counts: Counter[str] = Counter()
        self.executions: Counter[int] = Counter()
        self.lag_seconds = self.own_lag_seconds = self.pause_seconds = self.held_seconds = 0.0

    def add(self, book: Book, errors: int, pauses: tuple[float, float]) -> None:
        """`pauses`: the loop's longest without a turn, and the longest that its thread computed in one; seconds."""
        self.days += 1
        self.pause_seconds, self.held_seconds = map(max, pauses, (self.pause_seconds, self.held_seconds))
        self.counts.update(book.endings)
        wrong, lost, hung = len(book.wrong), len(book.lost), len(book.hung)
        self.counts.update({"sent": book.sent, "left": book.left, "behind": book.behind, "errors": errors})
        self.counts.update({"laws": wrong + lost + hung + len(book.more_than_twice())})
        self.counts["wrong"] += wrong - book.endings["wrong"]  # what only the books show
        self.executions.update(book.executions)
        self.lag_seconds = max(self.lag_seconds, book.lag_seconds)
        self.own_lag_seconds = max(self.own_lag_seconds, book.own_lag_seconds)

    @property
    def is_well(self) -> bool:
        return not self.counts["laws"] and not self.counts["errors"]

    def row(self, name: str) -> str:
        told = self.counts["told"] + self.counts["refused"] + self.counts["passed"]
        thrice = sum(number for times, number in self.executions.items() if times > 2)
        cells = [name, self.days, *(self.counts[key] for key in ("sent", "whole")), told, self.counts["left"]]
        cells += [self.executions[2], thrice, *(self.counts[key] for key in ("lost", "wrong", "hung", "errors"))]
        cells += [f"{1_000 * self.pause_seconds:.0f} ({1_000 * self.held_seconds:.0f})"]
        cells += [f"{1_000 * self.lag_seconds:.0f} ({1_000 * self.own_lag_seconds:.0f})"]
        return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"


def show_progress(sums: dict[str, Sums], until: float) -> None:
    days, sent = sum(one.days for one in sums.values()), sum(one.counts["sent"] for one in sums.values())
    if days % DAYS_A_LINE == 0:
        left = max(0.0, until - time.monotonic())
        print(f"{days} days, {sent:,} requests, {left:.0f} s left", file=sys.stderr, flush=True)


async def run(minutes: float, seed: int, command: list[str]) -> bool:
    """Days until the time is up, each kind at least once; whether every law held."""
    sums = {name: Sums() for name in DAYS}
    memory: list[float] = []
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_under_test(Path(folder), seed, command) as setup:
            gate = Gate(setup.url, setup.pid)
            while not memory or time.monotonic() < until:
                for name, plans in DAYS.items():
                    for plan in plans:
                        if memory and time.monotonic() > until:
                            break
                        seed += 1
                        book = await setup.day(plan, seed)
                        errors = setup.errors_logged()
                        sums[name].add(book, len(errors), await asyncio.to_thread(setup.loop_pause_seconds))
                        for line in [*book.broken_laws(), *errors][:SHOWN]:
                            print(f"{plan.name}, seed {seed}: {line.strip()[:300]}", file=sys.stderr, flush=True)
                        show_progress(sums, until)
                memory.append(gate.resident_mib())
    print(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1))
    for name, one in sums.items():
        print(one.row(name))
    print(f"\nResident after each round of all days, MiB: {', '.join(f'{mib:.0f}' for mib in memory)}.")
    return all(one.is_well for one in sums.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headway")
    typed = parser.parse_args()
    command = [typed.headway] if typed.headway is not None else list(HEADWAY)
    return 0 if asyncio.run(run(typed.minutes, typed.seed, command)) else 1


if __name__ == "__main__":
    sys.exit(main())
