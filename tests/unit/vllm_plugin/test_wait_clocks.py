"""Waits by reason, and how many requests overtook."""

from __future__ import annotations

from headway.vllm_plugin.wait_clocks import WaitClocks, in_words


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
    clocks.admit(9)
    began = clocks.reading(0.0)
    for arrival in (1, 5, 6, 7):
        clocks.admit(arrival)
    ended = clocks.reading(0.0)
    for arrival in (2, 8):
        clocks.admit(arrival)
    wait = clocks.wait(2, began, ended)
    assert wait.overtaken_by == 3, "9 was in before it came, 1 had come before it, and 8 went after it"
    assert "3 later arrivals were admitted before it" in in_words(wait)
