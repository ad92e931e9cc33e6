"""The latest dispatches: the same as a look at all of them, without one."""

from __future__ import annotations

import random

from headway.gateway.queueing.recent_dispatches import _REMEMBERED, RecentDispatches


class Counted(int):
    """A number that counts its comparisons."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int.__lt__(self, other)


def test_they_are_counted_as_a_look_at_all_of_them_would() -> None:
    chance = random.Random(3)
    recent, dispatched = RecentDispatches(), list[int]()
    for number in range(3 * _REMEMBERED):
        entry = chance.randrange(number // 2 + 1, number + 2)  # some twice: they were taken back
        recent.note(entry)
        dispatched.append(entry)
        if number % 97 == 0:
            asked = chance.randrange(number + 2)
            assert recent.later_than(asked) == sum(one > asked for one in dispatched[-_REMEMBERED:])


def test_a_dispatch_from_a_deep_queue_looks_at_few_others() -> None:
    recent = RecentDispatches()
    for number in range(2 * _REMEMBERED):
        recent.note(Counted(number))
    Counted.compared = 0
    recent.note(Counted(5))
    assert recent.later_than(Counted(5)) == _REMEMBERED - 1
    assert Counted.compared <= 3 * _REMEMBERED.bit_length()
