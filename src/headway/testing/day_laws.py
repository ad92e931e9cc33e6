"""Laws of a simulated day: they hold for every engine, rules and policies. No engine code is used here.

log = StepLog()
outcome = simulate(trace, rules, step_time, policies, observer=log)
check_day(Day(trace, rules, outcome, log.steps))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from headway.simulator.outcome import NEVER, DayOutcome, StepRecord, TokenGaps
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace


class Day(NamedTuple):
    """What went in and what came out. `greedy`: the admission policy refuses no request."""

    trace: Trace
    rules: EngineRules
    outcome: DayOutcome
    steps: Sequence[StepRecord]
    greedy: bool = False


class StepRecords:
    """A `StepObserver` that keeps all steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, step: StepRecord) -> None:
        """Keep it."""
        self.steps.append(step)


def check_day(day: Day) -> None:
    """Check every law; AssertionError on the first that does not hold."""
    for law in DAY_LAWS:
        law(day)


def every_request_ends_once(day: Day) -> None:
    """Conservation: arrived = completed + refused, the day being over; and the totals agree with the rows."""
    outcome = day.outcome
    for row in range(len(day.trace)):
        lived = [int(column[row]) for column in (outcome.admitted_ps, outcome.first_token_ps, outcome.ended_ps)]
        if row in outcome.refused:
            assert outcome.refused[row].strip(), f"row {row} was refused without a reason"
            assert lived == [NEVER] * 3, f"row {row} was refused, and yet lived: {lived}"
        else:
            assert NEVER not in lived, f"row {row} vanished: admitted, first token, ended = {lived}"
    assert set(outcome.refused) <= set(range(len(day.trace))), "strangers were refused"
    assert outcome.makespan_ps == max([0, *outcome.ended_ps.tolist()])
    assert outcome.steps == len(day.steps)
    reported = np.bincount([row for step in day.steps for row in step.preempted], minlength=len(day.trace))
    # A composition that only preempts is reported with the next step; the day may end before there is one.
    untold = outcome.preemptions - reported
    assert ((untold >= 0) & (untold <= 1)).all(), f"{outcome.preemptions} preemptions, the steps tell of {reported}"


def causes_precede_effects(day: Day) -> None:
    """Arrived ≤ admitted < first token ≤ ended; arrivals are the trace's, follow-ups the client's pause after the end.

    Refused, a session has no further turns; these never arrive.
    """
    outcome, trace = day.outcome, day.trace
    for row in _completed(day):
        times = [int(c[row]) for c in (outcome.arrived_ps, outcome.admitted_ps, outcome.first_token_ps)]
        ended = int(outcome.ended_ps[row])
        assert times[0] <= times[1] < times[2] <= ended, f"row {row}: {times}, then ended at {ended}"
        single = trace.output_tokens[row] == 1
        assert (times[2] == ended) == single, f"row {row} has {trace.output_tokens[row]} tokens: {times}, {ended}"
    previous = _previous_turns(trace)
    for row, arrived in enumerate(outcome.arrived_ps.tolist()):
        before = previous.get(row)
        if before is None:
            assert arrived == _ps(trace.arrived_seconds[row]), f"row {row} arrived at {arrived}"
        elif row not in outcome.refused and trace.think_seconds is not None:
            ended = int(outcome.ended_ps[before])
            assert arrived == ended + _ps(trace.think_seconds[row]), f"turn {row} arrived at {arrived}"


def every_token_comes(day: Day) -> None:
    """Each request gets exactly its tokens: as many gaps as tokens after the first, and they add up to its time."""
    completed = _completed(day)
    outputs = day.trace.output_tokens
    wanted = sum(int(outputs[row]) - 1 for row in completed)
    gaps = [TokenGaps(*line) for line in day.outcome.gaps.tolist()]
    assert sum(gap.steps * gap.tokens for gap in gaps) == wanted
    waited_ps = sum(int(day.outcome.ended_ps[row] - day.outcome.first_token_ps[row]) for row in completed)
    gaps_ps = sum(
        gap.tokens * (gap.steps * gap.first_ps + gap.growth_ps * gap.steps * (gap.steps - 1) // 2) for gap in gaps
    )
    assert gaps_ps == waited_ps, f"the gaps come to {gaps_ps} ps, from first to last tokens it is {waited_ps} ps"
    decodes = sum(step.decodes for step in day.steps)
    calm = not day.outcome.preemptions.any()
    assert decodes >= wanted - sum(len(step.chunks) for step in day.steps)
    assert not calm or decodes >= wanted, f"{decodes} decodes cannot bring {wanted} tokens"
    if calm and not day.rules.async_scheduling:
        assert decodes == wanted, f"{decodes} decodes for {wanted} tokens after the first"


def prompts_are_computed_once(day: Day) -> None:
    """Chunks of a prompt follow each other from what the cache held; a preemption starts over, and nothing else does.

    A request that was never preempted had all of its prompt computed or cached, and no token of it twice.
    """
    reached: dict[int, int] = {}
    for step in day.steps:
        for row in step.preempted:
            reached.pop(row, None)
        for row, tokens, before in step.chunks:
            assert tokens > 0, f"row {row} got a chunk of {tokens} tokens"
            if row in reached:
                assert before == reached[row], f"row {row} went on at {before}, it had come to {reached[row]}"
            else:
                assert row in step.admitted, f"row {row} is computed and was not admitted in that step"
                assert before < day.trace.prompt_tokens[row] + day.trace.output_tokens[row]
                assert before == 0 or day.rules.prefix_caching, f"row {row} found {before} tokens in no cache"
            reached[row] = before + tokens
    for row in _completed(day):
        if not day.outcome.preemptions[row]:
            assert reached.get(row) == day.trace.prompt_tokens[row], f"row {row}: {reached.get(row)} prompt tokens"
            assert day.outcome.recomputed_tokens[row] == 0
    assert (day.outcome.cached_tokens < np.maximum(day.trace.prompt_tokens, 1)).all(), "a token must be computed"


def a_request_finds_its_own_blocks(day: Day) -> None:
    """Where no prompts share blocks: nothing at first, and after a preemption whole blocks it had computed."""
    if _shares_blocks(day):
        return
    prompts = day.trace.prompt_tokens
    reached: dict[int, int] = {}
    for step in day.steps:
        for row, tokens, before in step.chunks:
            if row in step.admitted:
                most = reached.get(row, 0)
                if most == prompts[row]:  # it has decoded since
                    most += day.trace.output_tokens[row] - 1
                assert before <= most, f"row {row} found {before} tokens, it had come to {most}"
                assert before % day.rules.block_tokens == 0, f"row {row} found {before} tokens, no whole blocks"
            reached[row] = max(reached.get(row, 0), min(before + tokens, int(prompts[row])))


def memory_is_finite(day: Day) -> None:
    """No step holds more blocks than there are or fewer than its tokens fill; the peak is the most any step held."""
    total, block = day.rules.kv_blocks, day.rules.block_tokens
    for step in day.steps:
        assert 0 <= step.blocks_free <= total, f"{step.blocks_free} of {total} blocks free: {step}"
        if not _shares_blocks(day):
            held = sum(-(-(before + tokens) // block) for _, tokens, before in step.chunks)
            held += -(-(step.context_tokens + step.decodes) // block)
            assert held <= total - step.blocks_free, f"{held} blocks of tokens in {total - step.blocks_free}: {step}"
    assert day.outcome.kv_blocks_peak == max([0, *(total - step.blocks_free for step in day.steps)])


def memory_is_given_back(day: Day) -> None:
    """The last step holds the blocks of requests that end with it and no others: earlier ones gave all back."""
    if day.rules.async_scheduling or _shares_blocks(day) or not day.steps:
        return  # a step may be composed for one that has ended; freed blocks may be shared
    last = np.flatnonzero(day.outcome.ended_ps == day.outcome.makespan_ps)
    tokens = day.trace.prompt_tokens[last] + day.trace.output_tokens[last] - 1
    held = int(np.sum(-(-tokens // day.rules.block_tokens)))
    if day.rules.adapters is not None:
        held += day.rules.adapters.paged_blocks * len(_adapters_of(day, last.tolist()))
    used = day.rules.kv_blocks - day.steps[-1].blocks_free
    assert used == held, f"{used} blocks in use in the last step, its requests need {held}"


def limits_are_kept(day: Day) -> None:
    """Token budget, seats and places for adapters are never exceeded. Admitted requests waited, preempted ones ran."""
    rules = day.rules
    for step, running, _ in _moments(day):
        tokens = step.decodes + sum(chunk[1] for chunk in step.chunks)
        assert 0 < tokens <= rules.max_num_batched_tokens, f"{tokens} tokens in {step}"
        assert len(running) <= rules.max_num_seqs, f"{len(running)} run in {step}"
        assert step.decodes + len(step.chunks) <= rules.max_num_seqs, f"more than the seats get tokens in {step}"
        if rules.adapters is not None:
            adapters = _adapters_of(day, running)
            assert len(adapters) <= rules.adapters.resident_max, f"{adapters} are in use at once in {step}"
            assert all(map(rules.serves, adapters)), f"not all of {adapters} are served, in {step}"
            assert (rules.kv_blocks - step.blocks_free) >= rules.adapters.paged_blocks * len(adapters)


def steps_follow_each_other(day: Day) -> None:
    """Time moves on: a step takes time, and none starts before the one before it is over."""
    for step in day.steps:
        assert step.duration_ps > 0, f"a step without duration: {step}"
    for earlier, later in pairwise(day.steps):
        over = earlier.started_ps + earlier.duration_ps
        assert later.started_ps >= over, f"a step starts at {later.started_ps}, the one before ends at {over}"


def no_request_waits_for_an_idle_replica(day: Day) -> None:
    """Between two steps that do not touch, and before the first, no request is inside: an empty batch admits any."""
    arrived, ended = day.outcome.arrived_ps, day.outcome.ended_ps
    inside = ended != NEVER
    over = -1
    for step in day.steps:
        if step.started_ps > over:
            waits = inside & (arrived < step.started_ps) & (ended > over)
            assert not waits.any(), f"rows {np.flatnonzero(waits).tolist()} wait from {over} to {step.started_ps}"
        over = step.started_ps + step.duration_ps


def greedy_wastes_no_room(day: Day) -> None:
    """Under greedy admission an online request waits only for want of a seat, of token budget or of blocks."""
    rules = day.rules
    if not day.greedy or rules.adapters is not None:
        return
    if rules.async_scheduling:  # there a step is composed before its start
        return
    keep_free = int(rules.watermark * (rules.kv_blocks + 1))
    most = day.trace.prompt_tokens + day.trace.output_tokens  # of a preempted one it is not known how many it has
    offline = set() if day.trace.offline is None else set(np.flatnonzero(day.trace.offline).tolist())
    for step, running, all_waiting in _moments(day):
        waiting = set(all_waiting) - offline
        budget = rules.max_num_batched_tokens - step.decodes - sum(chunk[1] for chunk in step.chunks)
        if not waiting or step.preempted or budget <= 0 or len(running) >= rules.max_num_seqs:
            continue
        largest = max(int(most[row]) for row in waiting)
        lacks_blocks = -(-largest // rules.block_tokens) > step.blocks_free - keep_free
        lacks_budget = not rules.chunked_prefill and largest > budget
        assert lacks_blocks or lacks_budget, f"rows {sorted(waiting)} wait, and there is room: {step}"


DAY_LAWS = (
    every_request_ends_once,
    causes_precede_effects,
    every_token_comes,
    prompts_are_computed_once,
    a_request_finds_its_own_blocks,
    memory_is_finite,
    memory_is_given_back,
    limits_are_kept,
    steps_follow_each_other,
    no_request_waits_for_an_idle_replica,
    greedy_wastes_no_room,
)
"""All laws of one day; `same_day` and `same_until_a_request_ends` compare two."""


def same_day(day: Day, other: Day) -> None:
    """Determinism, and equality of engines: the same steps, the same times for every request."""
    for step, twin in zip(day.steps, other.steps, strict=False):
        assert step == twin, f"one day has {step}\nthe other {twin}"
    assert len(day.steps) == len(other.steps)
    for name in ("arrived_ps", "admitted_ps", "first_token_ps", "ended_ps", "cached_tokens", "preemptions"):
        column, twin_column = getattr(day.outcome, name), getattr(other.outcome, name)
        assert column.tolist() == twin_column.tolist(), f"{name} differs: {column} and {twin_column}"
    assert day.outcome.recomputed_tokens.tolist() == other.outcome.recomputed_tokens.tolist()
    assert day.outcome.refused == other.outcome.refused
    assert day.outcome.kv_blocks_peak == other.outcome.kv_blocks_peak


def same_until_a_request_ends(day: Day, other: Day) -> None:
    """Oracle boundary: days that differ in true lengths only are the same day until the first of these shows.

    Only for policies without an oracle, synchronous scheduling, and traces of which no request is refused (a refusal
    looks at the whole length).
    """
    ends = [int(end) for each in (day, other) for end in each.outcome.ended_ps if end != NEVER]
    first_end = min(ends, default=0)
    for step, twin in zip(day.steps, other.steps, strict=False):
        if min(step.started_ps, twin.started_ps) >= first_end:
            return
        assert step == twin, f"before any length could show, one day has {step}\nthe other {twin}"


def _shares_blocks(day: Day) -> bool:
    return day.rules.fused_share > 0 or (day.rules.prefix_caching and day.trace.prefix_ids is not None)


def _completed(day: Day) -> list[int]:
    return [row for row in range(len(day.trace)) if row not in day.outcome.refused]


def _ps(seconds: float) -> int:
    return int(np.rint(seconds * PS_PER_SECOND))


def _previous_turns(trace: Trace) -> dict[int, int]:
    """Row -> row of the turn before it in its session."""
    if trace.session is None or trace.turn is None:
        return {}
    last: dict[int, int] = {}
    previous: dict[int, int] = {}
    for row in np.lexsort((trace.turn, trace.session)).tolist():
        session = int(trace.session[row])
        if session >= 0:
            if session in last:
                previous[row] = last[session]
            last[session] = row
    return previous


def _moments(day: Day) -> Iterator[tuple[StepRecord, set[int], set[int]]]:
    """Each step with the requests that run in it and wait at its start, derived from arrivals, admissions and ends."""
    arrived, ended = day.outcome.arrived_ps.tolist(), day.outcome.ended_ps.tolist()
    inside = [row for row in range(len(day.trace)) if ended[row] != NEVER]
    running: set[int] = set()
    for step in day.steps:
        gone = {row for row in inside if ended[row] <= step.started_ps}
        # A victim may have come back within the same record: it gave way first.
        for row in step.preempted:
            assert row in running, f"row {row} is preempted and does not run: {step}"
            running.discard(row)
        for row in step.admitted:
            assert row not in running, f"row {row} is admitted and runs already: {step}"
            running.add(row)
        running -= gone
        waiting = {row for row in inside if arrived[row] <= step.started_ps} - running - gone
        yield step, set(running), waiting


def _adapters_of(day: Day, rows: Iterable[int]) -> set[str]:
    """The LoRA adapters that these requests want."""
    trace = day.trace
    if trace.adapter is None:
        return set()
    return {trace.adapters[trace.adapter[row]] for row in rows if trace.adapter[row] >= 0}
