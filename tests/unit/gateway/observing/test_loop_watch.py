"""The loop watch finds the longest pause, and forgets it after a minute."""

from __future__ import annotations

from headway.gateway.observing.loop_watch import PERIOD_SECONDS, LoopWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_is_the_lateness_of_a_turn() -> None:
    clock, cpu = Clock(), Clock()
    watch = LoopWatch(clock, cpu)
    watch.turn()
    clock.now += PERIOD_SECONDS
    watch.turn()
    assert (watch.longest_seconds(), watch.pauses) == (0.0, 0)
    clock.now += PERIOD_SECONDS + 0.5
    cpu.now += 0.1  # another program had the machine for the rest
    watch.turn()
    assert round(watch.longest_seconds(), 6) == 0.5
    assert round(watch.longest_held_seconds, 6) == 0.1
    assert round(watch.held_seconds(), 6) == 0.1
    clock.now += 0.12
    cpu.now += 0.04
    watch.turn()
    assert (watch.pauses, watch.holds) == (2, 1)
    text = "".join(watch.metrics())
    assert "headway_event_loop_pauses_total 2.0" in text
    assert "headway_event_loop_holds_total 1.0" in text


def test_a_pause_is_forgotten_after_a_minute_and_not_before_half_of_it() -> None:
    clock, cpu = Clock(), Clock()
    watch = LoopWatch(clock, cpu)
    clock.now += 1.0
    cpu.now += 0.9
    watch.turn()
    for second in range(1, 120):
        clock.now += PERIOD_SECONDS
        watch.turn()
        assert (watch.longest_seconds() > 0.5) or second > 1
        assert (watch.held_seconds() > 0.5) == (watch.longest_seconds() > 0.5)
        clock.now += 1.0 - PERIOD_SECONDS
        watch._due = clock.now  # asyncio's timer
    clock.now += PERIOD_SECONDS
    watch.turn()
    assert watch.longest_seconds() < 0.5
