"""Displacement: a waiting request of higher priority takes the place of running ones of lower priority.

Pure: facts of a step in, the requests to preempt out. vLLM preempts only when running requests run out of KV blocks. A
request that waits for a seat or for blocks displaces no other, however urgent it is (vLLM issue 40004).

Law. Before a step, for the first requests in the order of service, one after the other:

1. One that would be admitted anyway displaces no other, and the first that would not, even so, ends the look.
2. A victim has a strictly lower priority (vLLM's sign: a larger number). Of those that may go, the lowest priority goes
   first, and inside it the preemption policy chooses.
3. No request is displaced more than `times` times, or within `cooldown_seconds` after it was last admitted.
4. No request is displaced unless computing the victims again takes less time than the other would otherwise wait:
   until enough of the running requests are expected to end. One that ends by itself right now is waited for.

What is displaced waits by its rank, not in front, and never joins the step that it was displaced for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from headway.domain.event import Admitted, Cancelled, Completed, Event, Preempted
from headway.domain.request import Request, RequestId
from headway.policies.preemption.smallest_remaining_benefit import remaining_tokens
from headway.scheduling.offline_gate import StepPicoseconds

ChosenVictim: TypeAlias = Callable[[Sequence[Request], float], Request]
"""(running requests in order of admission, seconds) -> the one of them that gives way."""

HEADS_MAX = 8
"""Waiting requests that are looked at before one step, at most."""


@dataclass(frozen=True, slots=True)
class DisplaceRules:
    """Bounds of displacement.

    Attributes:
        times: how often one request may be displaced, at least 1.
        cooldown_seconds: how long a request runs after its admission before it may be displaced.
    """

    times: int = 2
    cooldown_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"displace times must be at least 1, got {self.times}")
        if not 0 <= self.cooldown_seconds < float("inf"):
            raise ValueError(f"displace cooldown_seconds must be at least 0, got {self.cooldown_seconds}")


class Waiting(NamedTuple):
    """A waiting request, the tokens it has to compute, and the free KV blocks that its admission needs."""

    request: Request
    tokens: int
    blocks: int


class Running(NamedTuple):
    """A running online request.

    Attributes:
        request: it.
        computed_tokens: its KV tokens computed before the step.
        step_tokens: what it takes of the step; 0 if all its tokens are on their way, and it leaves by itself.
        blocks: KV blocks that it holds, with those that it takes in this step.
    """

    request: Request
    computed_tokens: int
    step_tokens: int
    blocks: int


class Room(NamedTuple):
    """What a step has for waiting requests.

    Attributes:
        seats: free ones.
        blocks: free KV blocks, less the watermark and what running requests take in this step.
        tokens: of the token budget, less what running requests take.
        token_budget: of a step.
        decodes: requests that decode.
        context_tokens: their KV tokens.
    """

    seats: int
    blocks: int
    tokens: int
    token_budget: int
    decodes: int
    context_tokens: int


class Displacement:
    """One per engine; it hears every event of the engine's scheduler."""

    hears = frozenset([Admitted, Preempted, Completed, Cancelled])

    def __init__(self, rules: DisplaceRules, step_ps: StepPicoseconds) -> None:
        self._rules = rules
        self._step_ps = step_ps
        self._admitted_at: dict[RequestId, float] = {}
        self._times: dict[RequestId, int] = {}

    def observe(self, event: Event) -> None:
        """Note when a request joined the batch; forget one that ended."""
        id_ = event.request.id
        if isinstance(event, Admitted):
            self._admitted_at[id_] = event.at
        elif isinstance(event, Preempted):
            self._admitted_at.pop(id_, None)
        elif isinstance(event, Completed | Cancelled):
            self._admitted_at.pop(id_, None)
            self._times.pop(id_, None)

    def plan(
        self, waiting: Iterable[Waiting], running: Sequence[Running], room: Room, now: float, victim: ChosenVictim
    ) -> list[Request]:
        """The requests to displace before the step that is composed, in order.

        Args:
            waiting: the first online requests in the order of service.
            running: online requests, in order of admission.
            room: for waiting requests.
            now: seconds.
            victim: asked which of several running requests gives way.
        """
        displaced: list[Request] = []
        here = list(running)
        for one in waiting:
            if room.tokens <= 0:
                break  # it could not start in this step
            room = room._replace(seats=room.seats - 1, blocks=room.blocks - one.blocks, tokens=room.tokens - one.tokens)
            if room.seats >= 0 and room.blocks >= 0:
                continue
            going = self._making_room(one.request, here, room, now, victim)
            if not going:
                break
            displaced += [chosen.request for chosen in going]
            here = [other for other in here if other not in going]
            room = _freed(room, going)
        for request in displaced:
            self._times[request.id] = self._times.get(request.id, 0) + 1
        return displaced

    def _making_room(
        self, head: Request, running: Sequence[Running], room: Room, now: float, choose: ChosenVictim
    ) -> list[Running]:
        """The requests that make room for `head`, which is counted in already; none if that is not worth it."""
        if head.adapter is not None and all(one.request.adapter != head.adapter for one in running):
            return []  # its adapter may find no slot
        may_go = [one for one in running if self._may_go(one, head, now)]
        going: list[Running] = []
        left = room
        while left.seats < 0 or left.blocks < 0:
            if not may_go:
                return []
            lowest = max([one.request.priority for one in may_go])
            chosen = choose([one.request for one in may_go if one.request.priority == lowest], now)
            victim = next(one for one in may_go if one.request is chosen)
            may_go.remove(victim)
            going.append(victim)
            left = _freed(left, [victim])
        cost = sum([self._recompute_ps(victim.computed_tokens, room) for victim in going])
        return going if cost < self._wait_ps(running, room) else []

    def _may_go(self, one: Running, head: Request, now: float) -> bool:
        if not one.step_tokens or one.request.priority <= head.priority:
            return False
        if self._times.get(one.request.id, 0) >= self._rules.times:
            return False
        admitted_at = self._admitted_at.get(one.request.id)
        return admitted_at is not None and now - admitted_at >= self._rules.cooldown_seconds

    def _recompute_ps(self, tokens: int, room: Room) -> int:
        """What computing so many tokens again adds to the steps that do, beside the decodes."""
        decodes, alone = max(1, room.decodes), self._decode_ps(room)
        added = before = 0
        while before < tokens:
            chunk = min(room.token_budget, tokens - before)
            added += self._step_ps(decodes, room.context_tokens, 1, chunk, before) - alone
            before += chunk
        return added

    def _wait_ps(self, running: Sequence[Running], room: Room) -> int:
        """How long until enough running requests have ended, if each decodes on for as long as is expected."""
        remaining = sorted(
            [(remaining_tokens(one.request) if one.step_tokens else 0, one) for one in running], key=_first
        )
        left = room
        for steps, one in remaining:
            left = _freed(left, [one])
            if left.seats >= 0 and left.blocks >= 0:
                return steps * self._decode_ps(room)
        return 0  # something else holds it up

    def _decode_ps(self, room: Room) -> int:
        return self._step_ps(max(1, room.decodes), room.context_tokens, 0, 0, 0)


def _first(pair: tuple[int, Running]) -> int:
    return pair[0]


def _freed(room: Room, going: Sequence[Running]) -> Room:
    """The room once these are gone; blocks that they share with others are counted as freed."""
    blocks, tokens = sum([one.blocks for one in going]), sum([one.step_tokens for one in going])
    return room._replace(seats=room.seats + len(going), blocks=room.blocks + blocks, tokens=room.tokens + tokens)
