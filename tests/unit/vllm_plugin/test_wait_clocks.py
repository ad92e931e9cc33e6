"""Waits by reason, and how many requests overtook."""

from __future__ import annotations

from random import Random

from headway.vllm_plugin.wait_clocks import REASONS, WaitClocks, in_words


def test_a_wait_is_split_by_reason() -> None:
    clocks = WaitClocks()
    clocks.scanned("seats", 0.0)
    started = clocks.reading(1.0)
    clocks.scanned("blocks", 3.0)
    clocks.scanned("idle", 3.5)
    wait = clocks.wait(0, started, clocks.reading(3.5))
    assert wait == (2.5, {"seats": 2.0, "blocks": 0.5}, 0)
    assert in_words(wait) == "waited 2.50 s (2.00 s seats, 0.50 s blocks); no later arrival was admitted before it"


def test_later_arrivals_admitted_earlier_are_counted() -> None:
    clocks = WaitClocks()
    clocks.admit(0)
    began = clocks.reading(0.0)
    for arrival in (1, 5, 6, 7):
        clocks.admit(arrival)
    ended = clocks.reading(0.0)
    for arrival in (2, 8):
        clocks.admit(arrival)
    wait = clocks.wait(2, began, ended)
    assert wait.overtaken_by == 3, "0 and 1 had come before it, and 8 went after it"
    assert "3 later arrivals were admitted before it" in in_words(wait)


def test_before_the_first_scan_no_reason_has_counted() -> None:
    clocks = WaitClocks()
    began = clocks.reading(3.0)
    assert began == (3.0, (0.0,) * 7, 0)
    assert clocks.wait(0, began, clocks.reading(8.0)) == (5.0, {}, 0)
    clocks.scanned("idle", 8.0)
    assert clocks.reading(8.0).seconds == (0.0,) * 7
    assert clocks.reading(9.5).seconds == (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5)
    assert clocks.reading(7.0).seconds == (0.0,) * 7, "a clock that another thread read earlier takes nothing away"


def test_every_reason_has_a_clock_of_its_own() -> None:
    clocks = WaitClocks()
    began = clocks.reading(0.0)
    for number, reason in enumerate(REASONS):
        clocks.scanned(reason, 10.0 * number)
    wait = clocks.wait(0, began, clocks.reading(70.0))
    assert wait.by_reason == dict.fromkeys(REASONS, 10.0)
    clocks.scanned("seats", 70.0)
    assert clocks.wait(0, began, clocks.reading(74.0)).by_reason == {**dict.fromkeys(REASONS, 10.0), "seats": 14.0}


def test_half_a_millisecond_is_worth_a_word() -> None:
    clocks = WaitClocks()
    clocks.scanned("seats", 0.0)
    began = clocks.reading(0.0)
    clocks.scanned("tokens", 0.0005)
    clocks.scanned("idle", 0.00099)
    assert clocks.wait(0, began, clocks.reading(0.00099)).by_reason == {"seats": 0.0005}


def test_admissions_are_numbered_and_told_in_words() -> None:
    clocks = WaitClocks()
    began = clocks.reading(0.0)
    assert [clocks.admit(arrival) for arrival in (7, 8)] == [0, 1]
    assert clocks.admissions == 2
    wait = clocks.wait(7, began, clocks.reading(1.0))
    assert in_words(wait) == "waited 1.00 s (no scan meanwhile); 1 later arrival was admitted before it"


def test_only_the_latest_admissions_can_have_overtaken() -> None:
    clocks = WaitClocks()
    began = clocks.reading(0.0)
    for _ in range(65_537):
        clocks.admit(1)
    assert clocks.wait(0, began, clocks.reading(1.0)).overtaken_by == 65_536


class Arrival(int):
    """A number that counts how often numbers are compared."""

    compared = 0

    def __gt__(self, other: int) -> bool:
        Arrival.compared += 1
        return int(self) > int(other)

    def __lt__(self, other: int) -> bool:
        Arrival.compared += 1
        return int(self) < int(other)


def test_overtaking_is_counted_right_at_a_cost_that_does_not_grow_with_the_wait() -> None:
    """The first waits while a thousand others overtake it and each other; some are admitted again."""
    chance, clocks = Random(1), WaitClocks()
    began = clocks.reading(0.0)
    order = sorted(range(1, 1_001), key=lambda arrival: arrival + chance.uniform(0, 300))
    order[100:100] = order[:50]
    for place, arrival in enumerate(order):
        clocks.admit(Arrival(arrival))
        Arrival.compared = 0
        counted = clocks.wait(Arrival(arrival), began, clocks.reading(0.0)).overtaken_by
        assert counted == sum(other > arrival for other in order[:place])
        assert Arrival.compared <= 10  # a search among 256
    assert clocks.wait(0, began, clocks.reading(0.0)).overtaken_by == 1_050
