"""A step in which memory or the token budget does not reach for everybody: request by request, as vLLM does it.

Running requests are served in order of admission; whoever finds no block takes it from the victim that the policy
names (vLLM `Scheduler.schedule`, first loop). Rare enough that its cost does not matter, exact so that skipping may
rely on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.simulator.batch import Batch, Chunks
from headway.simulator.decoding import computed_before
from headway.simulator.step_time import SECONDS_PER_PS
from headway.simulator.tracked import DECODING, LEAVING, PREFILLING, WAITING, TrackedRequest

if TYPE_CHECKING:
    from headway.simulator.skipping import SkippingEngine


def schedule_one_by_one(
    engine: SkippingEngine, step: int, returning: list[TrackedRequest]
) -> tuple[Chunks, tuple[int, ...], int, int]:
    """Share out `step` among those running; returns (chunks, preempted rows, decodes, their context tokens)."""
    batch, memory, block_tokens = engine.batch, engine.batch.memory, engine.rules.block_tokens
    budget, limit = engine.rules.max_num_batched_tokens, batch.chunk_limit(len(engine.scheduler.queue))
    order = list(batch.members)
    given: dict[TrackedRequest, int] = {}
    preempted: list[int] = []
    position = 0
    while position < len(order) and budget > 0:
        request = order[position]
        computed = _computed(request, step)
        tokens = min(_wanted(request, limit), budget)
        if tokens == 0:
            position += 1
            continue
        need = -(-(computed + tokens) // block_tokens) - _held(request, computed, block_tokens)
        while need > memory.free and request.phase != WAITING:
            victim = engine.scheduler.victim(batch.up_to_date(order), engine.now_ps * SECONDS_PER_PS)
            assert isinstance(victim, TrackedRequest)
            index = order.index(victim)
            position -= index < position
            del order[index]
            refund = given.pop(victim, 0)
            budget += refund
            _preempt(engine, victim, step, refund, victim in returning)
            preempted.append(victim.row)
        if request.phase == WAITING:
            break  # it gave way itself: the loop over the running ends here
        if request.phase == PREFILLING:
            memory.extend(request, computed + tokens)
        else:
            memory.take(need)
        given[request] = tokens
        budget -= tokens
        position += 1
    return _sum_up(batch, engine.busy_until_ps, step, order, given, returning, tuple(preempted))


def _sum_up(
    batch: Batch,
    busy_until_ps: int,
    step: int,
    order: list[TrackedRequest],
    given: dict[TrackedRequest, int],
    returning: list[TrackedRequest],
    preempted: tuple[int, ...],
) -> tuple[Chunks, tuple[int, ...], int, int]:
    chunks = [(r, tokens, r.computed_tokens) for r, tokens in given.items() if r.phase == PREFILLING]
    decoding = [r for r in given if r.phase == DECODING]
    context = sum(computed_before(r, step) for r in decoding)
    batch.wasting = sum(r.finish_step < step for r in decoding)
    for request in order:
        if request.phase == DECODING and request not in given:
            _stall(batch, busy_until_ps, request, step, request in returning)
    return chunks, preempted, len(decoding), context


def _wanted(request: TrackedRequest, limit: int) -> int:
    if request.phase == PREFILLING:
        return min(request.target_tokens - request.computed_tokens, limit)
    return 0 if request.phase == LEAVING else 1


def _computed(request: TrackedRequest, step: int) -> int:
    """KV tokens computed before `step`."""
    if request.phase == PREFILLING:
        return request.computed_tokens
    if request.phase == LEAVING:
        return computed_before(request, request.finish_step + 1)
    return computed_before(request, step)


def _held(request: TrackedRequest, computed: int, block_tokens: int) -> int:
    return request.blocks if request.phase == PREFILLING else -(-computed // block_tokens)


def _preempt(engine: SkippingEngine, victim: TrackedRequest, step: int, scheduled: int, was_stalled: bool) -> None:
    """Take a running request's memory and send it back; `scheduled` tokens of this step were its own already."""
    batch = engine.batch
    computed = _computed(victim, step)
    held = _held(victim, computed, engine.rules.block_tokens)
    produced, on_its_way = batch.produced_tokens(victim), 0
    if victim.phase == PREFILLING:
        batch.prefilling.remove(victim)
    else:
        held = -(-(computed + scheduled) // engine.rules.block_tokens)
        total = victim.base_produced + min(step - 1, victim.finish_step) - victim.joined_step
        on_its_way = total - produced
        if victim.phase == DECODING:
            batch.decoding.leave(victim)
        if not was_stalled:
            victim.last_token_ps = engine.busy_until_ps
    if on_its_way:
        engine.token_on_its_way(victim)
    victim.phase = WAITING
    victim.produced_tokens = produced
    victim.high_water_tokens = max(victim.high_water_tokens, computed)
    # vLLM names a block once its tokens are known: not the token on its way, but what this very step was to compute.
    known = min(computed + scheduled, victim.prompt_tokens + produced) if scheduled else computed - on_its_way
    batch.memory.release(victim, max(known, computed - on_its_way), held, keep=True)
    del batch.members[victim]
    batch.version += 1
    engine.columns.preemptions[victim.row] += 1
    engine.scheduler.preempted(victim, engine.now_ps * SECONDS_PER_PS)


def _stall(batch: Batch, busy_until_ps: int, request: TrackedRequest, step: int, was_stalled: bool) -> None:
    """A decoding request gets no token in `step`: everything it has ahead of it comes one step later."""
    decoding = batch.decoding
    decoding.leave(request)
    if request.finish_step < step:  # its end is on the way already
        request.phase = LEAVING
        return
    if not was_stalled:
        request.last_token_ps = busy_until_ps
        request.last_token_step = step - 1
    request.base_produced += step - 1 - request.joined_step
    request.target_tokens = computed_before(request, step)
    remaining = request.finish_step - step + 2  # counting the latest token, which `join` takes for the one of `step`
    decoding.join(request, step, remaining)
    batch.stalled.append(request)
