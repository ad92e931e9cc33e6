"""A step in which memory or the token budget does not reach for every request: request by request, as in vLLM.

Running requests are served in order of admission. One that finds no block takes it from the victim that the policy
names (vLLM `Scheduler.schedule`, first loop). Rare enough that its cost does not matter, exact so that skipping may
rely on it.
"""

from __future__ import annotations

from typing import NamedTuple

from headway.scheduling.scheduler import Scheduler
from headway.simulator.batch import Batch, Chunks
from headway.simulator.decoding import computed_before
from headway.simulator.step_time import SECONDS_PER_PS
from headway.simulator.tracked import DECODING, LEAVING, PREFILLING, WAITING, TrackedRequest


class Moment(NamedTuple):
    """When a step is composed."""

    step: int  # its number
    now_ps: int
    busy_until_ps: int  # end of the step composed before it


class ConstrainedStep(NamedTuple):
    """What the running requests get of a step."""

    chunks: Chunks
    decodes: int
    context_tokens: int  # of the decodes
    preempted: list[TrackedRequest]
    owed: list[TrackedRequest]  # preempted while the step in flight computes a token of theirs


class _Sharing(NamedTuple):
    """What became of the running requests when the step was shared out."""

    staying: list[TrackedRequest]  # in order of admission
    given: dict[TrackedRequest, int]  # tokens, in the order in which they were given
    preempted: list[TrackedRequest]
    owed: list[TrackedRequest]


def constrained_step(
    batch: Batch, scheduler: Scheduler, moment: Moment, returning: list[TrackedRequest]
) -> ConstrainedStep:
    """Share a step out among the running requests; victims lose seat and memory and are queued again.

    Args:
        batch: the running requests, changed in place.
        scheduler: names the victims and queues them again.
        moment: when.
        returning: decoding requests that got no token in the step before.
    """
    shared = _share_out(batch, scheduler, moment, returning)
    chunks = [(r, tokens, r.computed_tokens) for r, tokens in shared.given.items() if r.phase == PREFILLING]
    decoding = [r for r in shared.given if r.phase == DECODING]
    context_tokens = sum(computed_before(r, moment.step) for r in decoding)
    batch.wasting = sum(r.finish_step < moment.step for r in decoding)
    for request in shared.staying:
        if request.phase == DECODING and request not in shared.given:
            _stall(batch, moment, request, was_stalled=request in returning)
    return ConstrainedStep(chunks, len(decoding), context_tokens, shared.preempted, shared.owed)


def _share_out(batch: Batch, scheduler: Scheduler, moment: Moment, returning: list[TrackedRequest]) -> _Sharing:
    """Give tokens and blocks in order of admission, taking blocks from victims where none is free."""
    memory, block_tokens = batch.memory, batch.rules.block_tokens
    budget, limit = batch.token_budget, batch.chunk_limit(len(scheduler.queue))
    order = list(batch.members)
    given: dict[TrackedRequest, int] = {}
    preempted: list[TrackedRequest] = []
    owed: list[TrackedRequest] = []
    position = 0
    while position < len(order) and budget > 0:
        request = order[position]
        computed = computed_tokens(request, moment.step)
        tokens = min(_wanted(request, limit), budget)
        if request.is_offline and request.phase == PREFILLING:
            tokens = min(tokens, batch.offline_tokens)
        if tokens == 0:
            position += 1
            continue
        need = -(-(computed + tokens) // block_tokens) - _held(request, computed, block_tokens)
        while need > memory.free and request.phase != WAITING:
            now = moment.now_ps * SECONDS_PER_PS
            victim = scheduler.victim(batch.up_to_date(order), now)
            assert isinstance(victim, TrackedRequest)
            index = order.index(victim)
            position -= index < position
            del order[index]
            refund = given.pop(victim, 0)
            budget += refund
            if preempt(batch, moment, victim, refund, was_stalled=victim in returning):
                owed.append(victim)
            scheduler.preempted(victim, now)
            preempted.append(victim)
        if request.phase == WAITING:
            break  # it gave way itself: the loop over the running ends here
        if request.phase == PREFILLING:
            memory.extend(request, computed + tokens)
        else:
            memory.take(need)
        given[request] = tokens
        budget -= tokens
        position += 1
    return _Sharing(order, given, preempted, owed)


def _wanted(request: TrackedRequest, limit: int) -> int:
    if request.phase == PREFILLING:
        return min(request.target_tokens - request.computed_tokens, limit)
    return 0 if request.phase == LEAVING else 1


def computed_tokens(request: TrackedRequest, step: int) -> int:
    """KV tokens computed before `step`."""
    if request.phase == PREFILLING:
        return request.computed_tokens
    if request.phase == LEAVING:
        return computed_before(request, request.finish_step + 1)
    return computed_before(request, step)


def _held(request: TrackedRequest, computed: int, block_tokens: int) -> int:
    return request.blocks if request.phase == PREFILLING else -(-computed // block_tokens)


def preempt(batch: Batch, moment: Moment, victim: TrackedRequest, refund: int, *, was_stalled: bool) -> bool:
    """Take a running request's seat and memory; `refund` tokens of this step were its own already.

    Returns whether the step in flight computes a token of it.
    """
    step, block_tokens = moment.step, batch.rules.block_tokens
    computed = computed_tokens(victim, step)
    held = _held(victim, computed, block_tokens)
    produced, on_its_way = batch.produced_tokens(victim), 0
    if victim.phase == PREFILLING:
        batch.prefilling.remove(victim)
    else:
        held = -(-(computed + refund) // block_tokens)
        total = victim.base_produced + min(step - 1, victim.finish_step) - victim.joined_step
        on_its_way = total - produced
        if victim.phase == DECODING:
            batch.decoding.leave(victim)
        if not was_stalled:
            victim.last_token_ps = moment.busy_until_ps
    victim.phase = WAITING
    victim.produced_tokens = produced
    victim.high_water_tokens = max(victim.high_water_tokens, computed)
    victim.recomputed_below = max(victim.recomputed_below, computed)
    # vLLM names a block once its tokens are known: not the token on its way, whose KV the step in flight computes, but
    # what this very step was to compute. If the step in flight completes a prompt, all that it computes is known; so it
    # is if the request had gone without a token in the step before that one.
    stalled_before = victim.joined_step == step - 2 and victim.last_token_step < victim.joined_step
    named = computed if victim.joined_step == step - 1 or stalled_before else computed - on_its_way
    if refund:
        named = max(named, min(computed + refund, victim.prompt_tokens + produced))
    batch.memory.release(victim, named, held, keep=True)
    batch.vacated(victim)
    return on_its_way > 0


def _stall(batch: Batch, moment: Moment, request: TrackedRequest, *, was_stalled: bool) -> None:
    """A decoding request gets no token in this step: everything it has ahead of it comes one step later."""
    decoding, step = batch.decoding, moment.step
    decoding.leave(request)
    if request.finish_step < step:  # its end is on the way already
        request.phase = LEAVING
        return
    if not was_stalled:
        request.last_token_ps = moment.busy_until_ps
        request.last_token_step = step - 1
    request.base_produced += step - 1 - request.joined_step
    request.target_tokens = computed_before(request, step)
    remaining = request.finish_step - step + 2  # counting the latest token, which `join` takes for the one of `step`
    decoding.join(request, step, remaining)
    batch.stalled.append(request)
