"""The embedded engine's model of a replica: the reference engine in real time, under live requests.

The rules are those of `simulator.reference_engine`, step for step. Here arrivals, true lengths and time are live. Where
the machine cannot keep up, modelled time falls behind the clock; it never runs ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headway.scheduling.bundle import bundle
from headway.simulator.arrivals import why_never
from headway.simulator.reference_blocks import ContentKey, unshared_key
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.replica import Replica
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS

_SLIP_SECONDS = 0.05


@dataclass(slots=True)
class Generation:
    """One request that waits or runs.

    Attributes:
        request: the request as the engine keeps it.
        on_token: called with `is_last` for every token, in the event loop.
        prompt_blocks: what the full blocks of its prompt hold, see `prompt_blocks`.
    """

    request: ReferenceRequest
    on_token: Callable[[bool], None]
    prompt_blocks: Sequence[int]


def prompt_blocks(content: bytes, bytes_per_block: int) -> list[int]:
    """Hash of the prompt up to the end of each full block: an equal hash means an equal prefix."""
    hashes: list[int] = []
    chain = 0
    for start in range(0, len(content) - bytes_per_block + 1, bytes_per_block):
        chain = hash((chain, content[start : start + bytes_per_block]))
        hashes.append(chain)
    return hashes


class LiveEngine:
    """One replica in real time. `live` runs for as long as the engine lives."""

    def __init__(self, replica: Replica, clock: Callable[[], float]) -> None:
        self._rules = replica.rules
        policies = bundle(prediction="declared-max", costs=replica.costs, seed=0)
        self._engine = ReferenceEngine(replica.rules, replica.step_time, policies, self._content_key)
        self._generations: dict[int, Generation] = {}  # by number, until they end
        self._clock = clock
        self._began = clock()
        self._submitted = asyncio.Event()
        self._numbers = 0

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self._engine.size

    @property
    def waiting(self) -> int:
        """Requests in the engine's own queue."""
        return self._engine.waiting

    @property
    def kv_share(self) -> float:
        """KV blocks in use, as a share of all."""
        memory = self._engine.memory
        return 1.0 - memory.blocks_free / memory.blocks_total

    @property
    def kv_blocks(self) -> int:
        """KV blocks in all."""
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
        """Queue a request; returns its number, for `abort`. It must fit (`why_never`).

        `blocks` are the `prompt_blocks` of its prompt; without them it shares no memory.
        """
        self._numbers += 1
        request = ReferenceRequest(self._numbers, self._seconds(), prompt_tokens, max_output_tokens=bound)
        self._generations[self._numbers] = Generation(request, on_token, blocks)
        self._engine.submit(request, output_tokens)
        self._submitted.set()
        return self._numbers

    def cached_tokens(self, number: int) -> int:
        """Prompt tokens of a request that its first admission found in memory; 0 before that or after its end."""
        generation = self._generations.get(number)
        return 0 if generation is None else generation.request.cached_tokens

    def abort(self, number: int) -> None:
        """Drop a request whose client left: its memory is free for the next step. Unknown numbers are ignored."""
        generation = self._generations.pop(number, None)
        if generation is not None:
            self._engine.cancel(generation.request)

    async def live(self) -> None:
        """Take step after step; sleep while no request is inside."""
        while True:
            ends_ps = self._engine.compose()
            if ends_ps is None:
                self._submitted.clear()
                await self._submitted.wait()
                self._engine.idle_until(int(self._seconds() * PS_PER_SECOND))
            else:
                await self._until(ends_ps)
                self._finish_step()

    async def _until(self, at_ps: int) -> None:
        left = at_ps * SECONDS_PER_PS - self._seconds()
        if left < -_SLIP_SECONDS:
            self._began -= left  # behind: modelled time waits for the machine
        await asyncio.sleep(max(0.0, left))

    def _finish_step(self) -> None:
        for request in self._engine.finish_step():
            generation = self._generations.get(request.row)
            if generation is None:
                continue  # aborted while the tokens before it in this step were delivered
            generation.on_token(request.has_ended)
            if request.has_ended:
                self._generations.pop(request.row, None)

    def _seconds(self) -> float:
        """Seconds since the engine began."""
        return self._clock() - self._began

    def _content_key(self, number: int, position: int) -> ContentKey:
        """Key of a full block: blocks of prompts by their content, all others by their request."""
        generation = self._generations.get(number)
        if generation is not None and position < len(generation.prompt_blocks):
            return generation.prompt_blocks[position], position
        return unshared_key(number, position)
