"""The reference engine on the wall clock: steps take as long as the model says, requests come when they come.

Law: the rules are those of `simulator.reference`, step for step; only arrivals, true lengths and time are live. Where
the machine cannot keep up, modelled time is let slip and never runs ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headway.scheduling.bundle import bundle
from headway.simulator.arrivals import why_never
from headway.simulator.reference import ReferenceEngine
from headway.simulator.reference_blocks import ContentKey, ContentKeys, ReferenceBlockMemory
from headway.simulator.reference_day import DayRecord, ReferenceRequest
from headway.simulator.replica import Replica
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Trace

_SLIP_SECONDS = 0.05


@dataclass(slots=True)
class Generation:
    """One request inside.

    Attributes:
        request: as the engine keeps it.
        output_tokens: its true length.
        on_token: called with `is_last` for every token, in the event loop.
        prompt_blocks: what the full blocks of its prompt hold, see `prompt_blocks`.
        cached_tokens: prompt tokens that were found in memory when it was first admitted; None before that.
    """

    request: ReferenceRequest
    output_tokens: int
    on_token: Callable[[bool], None]
    prompt_blocks: Sequence[int]
    cached_tokens: int | None = None


def prompt_blocks(content: bytes, bytes_per_block: int) -> list[int]:
    """What each full block of a prompt holds, as a hash over everything up to its end: equal means an equal prefix."""
    hashes: list[int] = []
    chain = 0
    for start in range(0, len(content) - bytes_per_block + 1, bytes_per_block):
        chain = hash((chain, content[start : start + bytes_per_block]))
        hashes.append(chain)
    return hashes


class LiveEngine(ReferenceEngine):
    """One replica in real time. `live` runs for as long as the engine lives."""

    def __init__(self, replica: Replica, clock: Callable[[], float]) -> None:
        policies = bundle(prediction="declared-max", costs=replica.costs, seed=0)
        empty = _trace(0, 0, None)
        super().__init__(empty, replica.rules, replica.step_time, policies, observer=None, listeners=())
        self._book = _LiveBook(empty)
        self._ledger = self._book
        if replica.rules.prefix_caching:
            keys = _LiveKeys(empty, replica.rules.block_tokens, self._book)
            self._memory = ReferenceBlockMemory(replica.rules.kv_blocks, replica.rules.block_tokens, keys)
        self._clock = clock
        self._began = clock()
        self._news = asyncio.Event()
        self._numbers = 0

    @property
    def waiting(self) -> int:
        """Requests in the engine's own queue."""
        return len(self._scheduler.queue)

    @property
    def kv_share(self) -> float:
        """KV blocks in use, as a share of all."""
        return 1.0 - self._memory.free / self._memory.blocks

    @property
    def kv_blocks(self) -> int:
        """KV blocks there are."""
        return self._rules.kv_blocks

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return self._rules.block_tokens

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts that begin alike share their memory."""
        return self._rules.prefix_caching

    def why_never(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Why a request of these lengths can never be served; None if it can."""
        return why_never(self._rules, prompt_tokens, output_tokens)

    def submit(
        self,
        prompt_tokens: int,
        output_tokens: int,
        bound: int | None,
        on_token: Callable[[bool], None],
        blocks: Sequence[int] = (),
    ) -> int:
        """A request comes in; returns its number, for `abort`. It must fit (`why_never`).

        `blocks` is what `prompt_blocks` tells of its prompt; without it nobody shares its memory.
        """
        self._numbers += 1
        now = self._clock() - self._began
        request = ReferenceRequest(0, _trace(prompt_tokens, output_tokens, bound), now)
        request.id = request.row = self._numbers
        self._book.inside[self._numbers] = Generation(request, output_tokens, on_token, blocks)
        request.cached_prompt_tokens = len(self._memory.find(request)) * self._rules.block_tokens
        self._scheduler.arrive(request, now)
        self._news.set()
        return self._numbers

    def cached_tokens(self, number: int) -> int:
        """Prompt tokens of one inside that did not have to be computed."""
        generation = self._book.inside.get(number)
        return 0 if generation is None else generation.cached_tokens or 0

    def abort(self, number: int) -> None:
        """Its client left: its memory is free for the next step."""
        generation = self._book.inside.pop(number, None)
        if generation is None:
            return
        request = generation.request
        request.has_ended = True
        if request.is_running:
            self._running.remove(request)
            self._memory.release(request)
            self.version += 1
            self._scheduler.left(request, self._now)
        else:
            self._scheduler.cancel(request.id, self._now)

    async def live(self) -> None:
        """Step after step; sleeps while nobody is there."""
        depth = 2 if self._rules.async_scheduling else 1
        while True:
            step = self._compose()
            if step is not None:
                self._in_flight.append(step)
                if len(self._in_flight) < depth:
                    continue
            if self._in_flight:
                finished = self._in_flight.popleft()
                await self._until(finished.ends_ps)
                self._now_ps = finished.ends_ps
                self._take_output(finished)
                self._book.gaps.clear()
            elif not (self._victims and self.waiting):
                self._news.clear()
                await self._news.wait()
                self._now_ps = max(self._now_ps, int((self._clock() - self._began) * PS_PER_SECOND))

    async def _until(self, at_ps: int) -> None:
        left = at_ps * SECONDS_PER_PS - (self._clock() - self._began)
        if left < -_SLIP_SECONDS:
            self._began -= left  # behind: modelled time waits for the machine
        await asyncio.sleep(max(0.0, left))

    def _deliver_token(self, request: ReferenceRequest, gaps: object) -> None:
        generation = self._book.inside.get(request.row)
        super()._deliver_token(request, gaps)  # type: ignore[arg-type]
        if generation is not None:
            generation.on_token(request.has_ended)

    def _end(self, request: ReferenceRequest) -> None:
        super()._end(request)
        self._book.inside.pop(request.row, None)


class _LiveBook(DayRecord):
    """Keeps who is inside and forgets who is not; a live engine has no day to sum up."""

    def __init__(self, empty: Trace) -> None:
        super().__init__(empty)
        self.inside: dict[int, Generation] = {}

    def output_tokens(self, row: int) -> int:
        """The true length of one inside."""
        return self.inside[row].output_tokens

    def admit(self, request: ReferenceRequest, at_ps: int, cached_tokens: int) -> None:
        """Only what was cached is kept, of the first time: a preempted request finds its own."""
        generation = self.inside.get(request.row)
        if generation is not None and generation.cached_tokens is None:
            generation.cached_tokens = cached_tokens

    def computed(self, request: ReferenceRequest, before: int, new: int) -> None:
        """Not kept."""

    def step(self, at_ps: int, *, waiting: int, running: int, blocks_used: int) -> None:
        """Not kept."""

    def first_token(self, request: ReferenceRequest, at_ps: int) -> None:
        """Not kept."""

    def end(self, request: ReferenceRequest, at_ps: int) -> None:
        """Not kept."""


class _LiveKeys(ContentKeys):
    """Who shares what among those inside: blocks of prompts by their content, all others by their request."""

    def __init__(self, empty: Trace, block_tokens: int, book: _LiveBook) -> None:
        super().__init__(empty, block_tokens)
        self._book = book

    def key(self, row: int, position: int) -> ContentKey:
        """Key of block number `position` of this request."""
        generation = self._book.inside.get(row)
        if generation is not None and position < len(generation.prompt_blocks):
            return generation.prompt_blocks[position], position
        return ("row", row), position


def _trace(prompt_tokens: int, output_tokens: int, bound: int | None) -> Trace:
    """A trace of one request, or of none where the prompt is 0."""
    rows = 1 if prompt_tokens else 0
    return Trace(
        "live",
        np.zeros(rows),
        np.full(rows, prompt_tokens, np.int64),
        np.full(rows, output_tokens, np.int64),
        None if bound is None else np.full(rows, bound, np.int64),
    )
