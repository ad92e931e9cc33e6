"""A crowd is let in by handfuls, in order; few are let in at once."""

from __future__ import annotations

import asyncio
from functools import partial

from headway.gateway.queueing.arrival_pacing import HANDFUL, WINDOW_SECONDS, ArrivalPacer


def test_a_crowd_enters_in_order_and_by_handfuls() -> None:
    async def run() -> None:
        entered: list[int] = []
        arrivals = ArrivalPacer(lambda: 0.0)
        for number in range(3 * HANDFUL + 1):
            arrivals.arrive(partial(entered.append, number))
        assert entered == list(range(HANDFUL))
        for turn in range(2, 4):
            await asyncio.sleep(0)
            assert entered == list(range(turn * HANDFUL))
            arrivals.arrive(partial(entered.append, 100 + turn))
        while len(entered) < 3 * HANDFUL + 3:
            await asyncio.sleep(0)
        assert entered == [*range(3 * HANDFUL + 1), 102, 103]

    asyncio.run(run())


def test_who_comes_when_few_do_waits_for_nothing() -> None:
    async def run() -> None:
        entered: list[int] = []
        now = 0.0
        arrivals = ArrivalPacer(lambda: now)
        for number in range(5 * HANDFUL):
            arrivals.arrive(partial(entered.append, number))
            now += WINDOW_SECONDS / HANDFUL * 1.001
            assert entered[-1] == number

    asyncio.run(run())


def test_one_that_fails_does_not_shut_the_door_on_those_behind_it() -> None:
    async def run() -> None:
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: failed.append(trouble["exception"]))
        entered: list[int] = []
        arrivals = ArrivalPacer(lambda: 0.0)
        for number in range(HANDFUL):
            arrivals.arrive(partial(entered.append, number))
        arrivals.arrive(partial([].pop, 0))
        arrivals.arrive(partial(entered.append, 9))
        while 9 not in entered:
            await asyncio.sleep(0)
        assert [type(one) for one in failed] == [IndexError]

    asyncio.run(run())
