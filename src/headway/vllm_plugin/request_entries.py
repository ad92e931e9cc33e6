"""Request entries: a request as the plug-in keeps it, where it stands, and the batch of running ones.

vLLM never gives true output lengths, so neither can an entry: it has the prompt, the tokens that came, and hints.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, overload

from headway.domain.request import Request
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.vllm_adapter import VllmRequest
from headway.vllm_plugin.wait_clocks import Reading
from headway.vllm_plugin.xargs_hints import XargsHints

NO_READING = Reading(0.0, (), 0)


class Place(StrEnum):
    """Where a request stands, as far as our queue knows. A `StrEnum`, whose members hash as fast as strings."""

    WAITING = "waiting"  # in our order
    BLOCKED = "blocked"  # vLLM says that it cannot run yet (grammar, remote KV)
    # vLLM stepped over it in this scan (LoRA limit, unsure connector), or it was displaced; offered again in the next
    SKIPPED = "skipped"
    IN_VLLM = "in vLLM"  # popped and not running (yet), or in a queue of vLLM's own (requests that hold KV blocks)
    RUNNING = "running"
    FINISHED = "finished"


MOVES: dict[Place, tuple[Place, ...]] = {
    Place.WAITING: (Place.RUNNING, Place.BLOCKED, Place.IN_VLLM, Place.FINISHED),
    Place.BLOCKED: (Place.WAITING, Place.FINISHED),
    Place.SKIPPED: (Place.WAITING, Place.BLOCKED, Place.FINISHED),
    Place.IN_VLLM: (Place.RUNNING, Place.WAITING, Place.BLOCKED, Place.SKIPPED, Place.FINISHED),
    Place.RUNNING: (Place.WAITING, Place.SKIPPED, Place.IN_VLLM, Place.FINISHED),
    Place.FINISHED: (),
}
"""Where a request may go next.

`RUNNING` to `WAITING` is a preemption, `RUNNING` to `SKIPPED` a displacement, `RUNNING` to `IN_VLLM` ends a session's
turn.
"""


class BlockHashes(Sequence[int]):
    """vLLM's hashes of the KV blocks of a prompt as numbers, each made when asked for; a long prompt has thousands."""

    __slots__ = ("_hashes", "_length")

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self._hashes = hashes
        self._length = len(hashes)  # as of its arrival: vLLM adds those of outputs

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [_number(one) for one in self._hashes[: self._length][place]]
        return _number(self._hashes[range(self._length)[place]])


def _number(block_hash: bytes) -> int:
    return int.from_bytes(block_hash[:8], "big")


class Entry:
    """A request between its arrival in the engine and its end."""

    __slots__ = (
        "admission",
        "arrival",
        "first_token_came",
        "hints",
        "id",
        "place",
        "produced_at_admission",
        "request",
        "resumed",
        "turn_over",
        "view",
        "wait_began",
        "work",
    )

    def __init__(self, request: VllmRequest, view: Request, hints: XargsHints, arrival: int) -> None:
        self.id = vllm.request_id(request)
        self.request = request
        self.view = view
        self.hints = hints
        self.arrival = arrival  # its number in order of arrival, counted from 0
        self.place = Place.WAITING
        self.resumed = False  # it was preempted and waits again
        self.turn_over = False  # a session's: it waits for its client's next input, with its blocks
        self.admission = -1  # the number of its latest admission, counted from 0; -1 before the first
        self.first_token_came = False
        self.produced_at_admission = 0
        self.work = 0  # prefill tokens at arrival, as the live FCFS estimate counts them
        self.wait_began = NO_READING  # the wait clocks at arrival

    def __repr__(self) -> str:
        return f"Entry({self.id!r}, {self.place}, arrival={self.arrival}, admission={self.admission})"

    def refresh(self) -> Request:
        """The view with the tokens that came since."""
        self.view.produced_tokens = vllm.output_tokens(self.request)
        return self.view

    @property
    def is_parked(self) -> bool:
        """Whether it waits in our queue, outside the order: blocked or skipped."""
        return self.place in (Place.BLOCKED, Place.SKIPPED)

    def move(self, place: Place) -> None:
        """Note its new place. A move that is not in `MOVES` is logged: it must not end the engine."""
        if place not in MOVES[self.place]:
            logger.error("headway: request %s moved from %s to %s; please report this", self.id, self.place, place)
        self.place = place


def view_of(request: VllmRequest, hints: XargsHints, now: float) -> Request:
    """What policies may see of a request that arrives at `now` (seconds, the engine's monotonic clock).

    A gateway's rank stands in for the priority of a client that gave none.
    """
    priority = vllm.client_priority(request) or 0
    if priority == 0 and hints.rank is not None:
        priority = hints.rank
    produced = vllm.output_tokens(request)
    view = Request(
        vllm.request_id(request),
        now,
        vllm.total_tokens(request) - produced,
        tenant=hints.tenant,
        session=hints.session or vllm.session_of(request),
        max_output_tokens=vllm.max_output_tokens(request),
        deadline=None if hints.deadline_seconds is None else now + hints.deadline_seconds,
        priority=priority,
        produced_tokens=produced,
        adapter=vllm.lora_of(request),
        is_offline=hints.is_offline,
        later_deadlines=None if hints.later is None else hints.later.moved(now),
    )
    view.prefix_hashes = BlockHashes(vllm.block_hashes_to_look_up(request))
    return view


class EngineLoad(NamedTuple):
    """What is inside the engine as a step is composed.

    Attributes:
        decodes: requests that decode in this step.
        decode_tokens: what they want to compute: one token each, and their drafts.
        context_tokens: their KV tokens.
        prefill_left: for each prompt that is computed, the tokens it has left.
        prefilled_tokens: KV tokens of those.
    """

    decodes: int
    decode_tokens: int
    context_tokens: int
    prefill_left: list[int]
    prefilled_tokens: int


class EngineBatch:
    """vLLM's running requests as a `BatchView`."""

    def __init__(self) -> None:
        self.version = 0
        self.decode_steps = 0
        self.prefilling: dict[str, Entry] = {}  # running, and no token came since their admission
        self._running: dict[str, Entry] = {}
        self._computing: list[Entry] = []  # running, and a part of the prompt is in no step yet

    @property
    def size(self) -> int:
        """Number of running requests."""
        return len(self._running)

    def running(self) -> list[Request]:
        """Running requests in order of admission, their tokens up to date."""
        return [entry.refresh() for entry in self._running.values()]

    def load(self) -> EngineLoad:
        """What runs now. O(running)."""
        decodes = decode_tokens = context_tokens = prefilled_tokens = 0
        prefill_left: list[int] = []
        for id_, entry in self._running.items():
            request = entry.request
            computed = vllm.computed_tokens(request)
            left = vllm.total_tokens(request) - computed if id_ in self.prefilling else 0
            if left > 0:
                prefill_left.append(left)
                prefilled_tokens += computed
            elif not vllm.is_ending(request):
                decodes += 1
                decode_tokens += vllm.lacking_tokens(request)
                context_tokens += computed
        return EngineLoad(decodes, decode_tokens, context_tokens, prefill_left, prefilled_tokens)

    def join(self, entry: Entry) -> None:
        """A request was admitted."""
        entry.produced_at_admission = vllm.output_tokens(entry.request)
        self._running[entry.id] = self.prefilling[entry.id] = entry
        self._computing.append(entry)
        self.version += 1

    def leave(self, request_id: str) -> None:
        """A request runs no longer; one that did not run is ignored."""
        entry = self._running.pop(request_id, None)
        if entry is not None:
            self.prefilling.pop(request_id, None)
            if entry in self._computing:
                self._computing.remove(entry)
            self.version += 1

    def composed(self) -> None:
        """A step was composed: prompts that it completes are prefilling no longer."""
        for entry in self._computing.copy():
            if vllm.computed_tokens(entry.request) >= vllm.total_tokens(entry.request):
                self._computing.remove(entry)
                self.version += 1

    def end_step(self, *, had_tokens: bool = True) -> list[Entry]:
        """A step ended, which counts if it computed tokens: the requests that got their first since their admission."""
        self.decode_steps += had_tokens
        if not self.prefilling:
            return []
        answered = [e for e in self.prefilling.values() if vllm.output_tokens(e.request) > e.produced_at_admission]
        for entry in answered:
            del self.prefilling[entry.id]
            self.version += 1
        return answered
