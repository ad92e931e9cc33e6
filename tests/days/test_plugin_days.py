"""Busy days with what the vLLM plug-in does beside its policies: both engines alike, and every law of a day holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Scheduler
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import simulate_reference
from headway.simulator.skipping import simulate
from headway.testing.day_laws import Day, StepRecords, check_day, same_day
from headway.testing.strategies import COSTS
from tests.parity.parity_days import ParityDay, plugin_days

DAYS = {day.name: day for day in plugin_days()}


def live(engine: Callable[..., DayOutcome], day: ParityDay, *, prefix_caching: bool) -> Day:
    log, rules = StepRecords(), replace(day.rules, prefix_caching=prefix_caching)
    policies = bundle(ordering=str(day.policy), costs=COSTS, seed=0)
    outcome = engine(day.trace, rules, day.step_time, policies, plugin=day.plugin, observer=log)
    narrow = day.plugin.tuning == "prefill-budget"  # a step then has less room than `rules` say
    return Day(day.trace, rules, outcome, log.steps, greedy=not narrow)


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("name", DAYS)
def test_both_engines_do_what_the_plugin_does(name: str, prefix_caching: bool) -> None:
    days = [live(engine, DAYS[name], prefix_caching=prefix_caching) for engine in (simulate, simulate_reference)]
    same_day(*days)
    check_day(days[0])


@pytest.mark.parametrize("name", [name for name, day in DAYS.items() if day.plugin.guard is not None])
def test_the_guard_suspends_while_requests_wait_and_reinstates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[tuple[bool, int]] = []
    suspend, reinstate = Scheduler.suspend, Scheduler.reinstate

    def noting(change: Callable[[Scheduler], None]) -> Callable[[Scheduler], None]:
        def changed(scheduler: Scheduler) -> None:
            waiting = {request.id for request in scheduler.queue}
            change(scheduler)
            assert {request.id for request in scheduler.queue} == waiting, "none is lost"
            changes.append((scheduler.suspended, len(waiting)))

        return changed

    monkeypatch.setattr(Scheduler, "suspend", noting(suspend))
    monkeypatch.setattr(Scheduler, "reinstate", noting(reinstate))
    live(simulate, DAYS[name], prefix_caching=False)
    assert [suspended for suspended, _ in changes[:4]] == [True, False, True, False]
    assert min(waiting for _, waiting in changes[:4]) > 5
