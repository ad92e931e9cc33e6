"""The fast engine and the reference engine live the same small nasty days, to the picosecond and to the event."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable

import pytest

from headway.domain.event import Event
from headway.domain.request import Request
from headway.scheduling import harm_judge
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
