"""Lists of models: who waits for fresh ones goes on when they are there, and not all at one turn of the event loop."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from headway.gateway.replicas.model_lists import ModelLists


def test_a_crowd_that_waits_for_the_lists_goes_on_in_several_turns() -> None:
    async def scenario() -> None:
        lists, went_on = ModelLists(tuple, lambda: 100.0), list[int]()
        for number in range(230):
            assert lists.ask_again(lambda number=number: went_on.append(number))  # type: ignore[misc]
        turns = [0]
        while turns[-1] < 230:
            await asyncio.sleep(0)
            turns.append(len(went_on))
        assert went_on == list(range(230)), "in order of arrival"
        assert max(later - before for before, later in pairwise(turns)) <= 50
        assert not lists.ask_again(lambda: None), "they are fresh"

    asyncio.run(scenario())


def test_who_waits_when_the_gateway_ends_is_not_called() -> None:
    async def scenario() -> None:
        lists, went_on = ModelLists(tuple, lambda: 100.0), list[int]()
        for number in range(230):
            lists.ask_again(lambda number=number: went_on.append(number))  # type: ignore[misc]
        while not went_on:
            await asyncio.sleep(0)
        lists.close()
        before = len(went_on)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(went_on) == before < 230

    asyncio.run(scenario())
