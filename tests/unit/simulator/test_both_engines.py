"""The fast engine and the reference engine live the same small nasty days, to the picosecond and to the event."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from headway.domain.event import Event
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import Request, RequestView
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.scheduling import harm_judge
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import DayOutcome, TokenGaps
from headway.simulator.reference import simulate_reference
from headway.simulator.skipping import simulate
from headway.testing.day_laws import Day, StepRecords, check_day, same_day
from tests.support.nasty_days import KINDS, NastyDay, nasty_day

DAYS = 12


class Chronicle:
    """Every event: what, when, and what a policy could read of the request then."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def observe(self, event: Event) -> None:
        request = event.request
        assert isinstance(request, Request)
        facts = [getattr(request, name) for name in Request.__slots__ if name not in ("estimate", "looked_up_at")]
        self.lines.append((type(event).__name__, *event[1:], *facts))


def live(engine: Callable[..., DayOutcome], day: NastyDay) -> tuple[Day, list[tuple[object, ...]]]:
    trace, rules, step_time, policies, plugin = day
    log, chronicle = StepRecords(), Chronicle()
    outcome = engine(trace, rules, step_time, policies.make(trace), plugin=plugin, observer=log, listeners=[chronicle])
    greedy = policies.admission == "greedy" and plugin.tuning == "off"
    return Day(trace, rules, outcome, log.steps, greedy), chronicle.lines


def gaps(outcome: DayOutcome) -> Counter[int]:
    """Inter-token gap in picoseconds → how many tokens came after it."""
    found: Counter[int] = Counter()
    for line in outcome.gaps.tolist():
        gap = TokenGaps(*line)
        assert gap.steps > 0
        assert gap.tokens > 0
        for step in range(gap.steps):
            found[gap.first_ps + step * gap.growth_ps] += gap.tokens
    return found


def points(outcome: DayOutcome) -> list[tuple[int, ...]]:
    """(picoseconds, waiting, running) of the curves."""
    return list(zip(outcome.curve_ps, outcome.curve_waiting, outcome.curve_running, strict=True))


def check_curves(fast: DayOutcome, plain: DayOutcome) -> None:
    """The fast engine draws a point a run of steps: what the other one drew last, or just before.

    Only victims of the very step that a point is drawn for are not in its queue yet.
    """
    shown: dict[int, set[tuple[int, ...]]] = {}
    for at_ps, waiting, running in points(plain):
        shown.setdefault(at_ps, set()).update([(waiting, running), (0, running)])
    moments = sorted(shown)
    for at_ps, waiting, running in points(fast):
        latest = bisect_right(moments, at_ps)
        assert any((waiting, running) in shown[moment] for moment in moments[max(0, latest - 2) : latest])
    assert max(fast.curve_blocks) == max(plain.curve_blocks) == fast.kv_blocks_peak


@pytest.mark.parametrize("first", range(0, 4 * DAYS, DAYS))
@pytest.mark.parametrize("kind", KINDS)
def test_they_live_the_same_day(kind: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harm_judge, "_LEAST_REQUESTS", 1)
    for seed in range(first, first + DAYS):
        day = nasty_day(kind, seed)
        (fast, told), (plain, plainly_told) = live(simulate, day), live(simulate_reference, day)
        same_day(fast, plain)
        check_day(fast)
        assert told == plainly_told
        assert gaps(fast.outcome) == gaps(plain.outcome)
        check_curves(fast.outcome, plain.outcome)


@pytest.mark.parametrize(
    "kind", ["no cache", "sessions", "moving limits", "plug-in", "adapter slots", "paged adapters"]
)
def test_they_live_the_same_day_with_fusion(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One keeps counts and the other blocks that several requests point to."""
    monkeypatch.setattr(harm_judge, "_LEAST_REQUESTS", 1)
    fused = preempted = 0
    for seed in range(3 * DAYS):
        day = nasty_day(kind, seed)
        if seed % 2:
            day = day._replace(trace=replace(day.trace, tenant=None))  # all of one tenant
        alone = replace(day.rules, async_scheduling=False, prefix_caching=False)
        shares = replace(alone, fused_share=(0.3, 0.58, 1.0)[seed % 3])
        exact = live(simulate, day._replace(rules=alone))[0]
        (fast, told), (plain, plainly_told) = (
            live(engine, day._replace(rules=shares)) for engine in (simulate, simulate_reference)
        )
        same_day(fast, plain)
        check_day(fast)
        assert told == plainly_told
        assert gaps(fast.outcome) == gaps(plain.outcome)
        check_curves(fast.outcome, plain.outcome)
        fused += [step.blocks_free for step in fast.steps] != [step.blocks_free for step in exact.steps]
        preempted += int(fast.outcome.preemptions.sum()) > 0
    assert fused > DAYS // 2
    assert preempted > 1


class Nosy:
    """Admission and preemption that write down all they are shown. They hold a request for three steps of four."""

    def __init__(self) -> None:
        self.shown: list[tuple[object, ...]] = []
        self.batches: list[tuple[int, list[int]]] = []  # version, and who runs

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        running = batch.running()
        assert batch.size == len(running) > 0
        produced = [(int(one.id), one.produced_tokens) for one in running]
        self.shown.append((request.id, batch.decode_steps, produced, memory, now))
        self.batches.append((batch.version, [row for row, _ in produced]))
        return int((int(request.id) + batch.decode_steps) % 4 > 0)

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        self.shown.append(("victim", [(one.id, one.produced_tokens) for one in running], now))
        return running[len(self.shown) % len(running)]


@pytest.mark.parametrize("kind", ["no cache", "own blocks", "shared blocks", "sessions"])
def test_they_show_policies_the_same(kind: str) -> None:
    looks = 0
    for seed in range(100, 120):
        trace, rules, step_time, _, _ = nasty_day(kind, seed)
        shown = []
        for engine in (simulate, simulate_reference):
            nosy = Nosy()
            engine(trace, rules, step_time, Policies(Fcfs(), nosy, nosy, RunningMean()))
            shown.append(nosy.shown)
            for (version, running), (later, others) in pairwise(nosy.batches):
                assert version != later or running == others
        assert shown[0] == shown[1]
        looks += len(shown[0])
    assert looks > 100
