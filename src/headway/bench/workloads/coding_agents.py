"""The workload `coding-agents`: long sessions of calls over a growing prompt, with pauses for tools and people."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headway.bench.workloads.workload import Curve, Workload, draw_from_quantiles, stream
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace

# Percent -> value, measured on the 426 recorded sessions (24,984 calls) named in the docstring of `coding_agents`;
# calls are those of a main agent, tokens are added between calls by a tool or a person.
CALLS: Curve = {0: 3, 1: 4, 5: 4, 10: 6, 25: 17, 50: 40, 75: 84, 90: 136, 95: 200, 99: 285, 100: 514}
FIRST_PROMPTS: Curve = {
    0: 6_343, 5: 10_336, 10: 11_745, 25: 16_904, 50: 19_580, 75: 29_692, 90: 80_727, 95: 100_022, 100: 110_000
}  # fmt: skip
ADDED_TOKENS: Curve = {0: 1, 25: 41, 50: 278, 75: 1_089, 90: 3_171, 95: 6_108, 99: 17_012, 100: 86_131}
OUTPUTS: Curve = {
    0: 2, 1: 57, 5: 87, 10: 104, 25: 139, 50: 218, 75: 426, 90: 889, 95: 1_518, 99: 3_749, 99.9: 8_787, 100: 15_390
}  # fmt: skip
COMPACTED_PROMPTS: Curve = {0: 9_976, 10: 14_278, 25: 25_855, 50: 36_038, 75: 66_485, 90: 89_370, 100: 95_000}
TOOL_SECONDS: Curve = {0: 0.5, 1: 2, 5: 3, 10: 4, 25: 5, 50: 8, 75: 19, 90: 76, 95: 157, 97: 300, 100: 300}
PERSON_SECONDS: Curve = {0: 0.5, 5: 4, 10: 11, 25: 33, 50: 105, 73: 300, 100: 300}
PERSON_SHARE = 0.14
SESSION_SECONDS = 30.0
PROMPT_MAX = 115_000
SYSTEM_TOKENS = 14_848
BLOCK_TOKENS = 512
# How long a call took there: 2.8 s and 15 ms an output token, by least squares. Only to set the informational arrivals.
CALL_SECONDS, OUTPUT_TOKEN_SECONDS = 2.8, 0.0154


def coding_agents(requests: int, seed: int) -> Trace:
    """Agents that code: each call sends the whole history again, of which a prefix cache holds nearly everything.

    Calls of a session, first prompt, tokens added, output, prompt after a compaction and pauses follow the quantiles of
    426 recorded sessions (callanjfox/kv-cache-tester, `traces/`, Apache-2.0, Copyright 2024 Callan Fox); a seventh of
    the pauses are a person's, the others a tool's, and pauses are cut at 300 s as that source cuts idle time. Ours are
    the Poisson starts, one every 30 s (the source publishes none), a history compacted before it passes 115,000 tokens,
    so that a window of 131,072 holds every call (the source's models had more), and a system prompt of 14,848 tokens
    that all sessions share. Every session holds its turns from the first; the last session may end early.
    """
    sessions: list[_AgentSession] = []
    starts = stream(seed, "coding-agents", "starts")
    rng = stream(seed, "coding-agents", "sessions")
    left, begin, next_id = requests, 0.0, SYSTEM_TOKENS // BLOCK_TOKENS
    while left:
        calls = min(left, max(1, round(float(draw_from_quantiles(rng, CALLS, 1)[0]))))
        session = _session(rng, calls, begin, next_id)
        sessions.append(session)
        left -= calls
        next_id = session.next_id
        begin += starts.exponential(SESSION_SECONDS)
    return _trace(sessions)


@dataclass(slots=True)
class _AgentSession:
    """One agent's run, call after call; block ids from `next_id` on are free."""

    next_id: int
    arrived: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    blocks: list[list[int]] = field(default_factory=list)


def _session(rng: np.random.Generator, calls: int, begin: float, next_id: int) -> _AgentSession:
    session = _AgentSession(next_id)
    outputs = _whole(draw_from_quantiles(rng, OUTPUTS, calls))
    added = _whole(draw_from_quantiles(rng, ADDED_TOKENS, calls))
    person = rng.random(calls) < PERSON_SHARE
    tool_pauses, person_pauses = (draw_from_quantiles(rng, curve, calls) for curve in (TOOL_SECONDS, PERSON_SECONDS))
    pauses = np.rint(np.where(person, person_pauses, tool_pauses) * 1000) / 1000
    compacted = _whole(draw_from_quantiles(rng, COMPACTED_PROMPTS, calls))
    prompt = int(_whole(draw_from_quantiles(rng, FIRST_PROMPTS, 1))[0])
    history = list(range(SYSTEM_TOKENS // BLOCK_TOKENS))
    now = begin
    for call in range(calls):
        pause = float(pauses[call]) if call else 0.0
        if call:
            prompt += int(outputs[call - 1]) + int(added[call])
            now += CALL_SECONDS + OUTPUT_TOKEN_SECONDS * int(outputs[call - 1]) + pause
        if prompt > PROMPT_MAX:
            prompt = min(int(compacted[call]), session.prompts[-1])
            history = history[: SYSTEM_TOKENS // BLOCK_TOKENS]
        session.blocks.append(_blocks(session, history, prompt))
        session.arrived.append(now)
        session.prompts.append(prompt)
        session.outputs.append(int(outputs[call]))
        session.pauses.append(pause)
    return session


def _blocks(session: _AgentSession, history: list[int], prompt: int) -> list[int]:
    """The prompt's block ids; full blocks join the history, a partial last one is new each time."""
    full, rest = divmod(prompt, BLOCK_TOKENS)
    fresh = range(session.next_id, session.next_id + max(0, full - len(history)))
    history.extend(fresh)
    session.next_id += len(fresh)
    if not rest:
        return history[:full]
    session.next_id += 1
    return [*history[:full], session.next_id - 1]


def _whole(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.maximum(np.rint(values), 1).astype(np.int64)


def _trace(sessions: list[_AgentSession]) -> Trace:
    lengths = [len(session.prompts) for session in sessions]
    arrived = np.concatenate([session.arrived for session in sessions])
    order = np.argsort(arrived, kind="stable")
    blocks = BlockIds.of([ids for session in sessions for ids in session.blocks])

    def column(name: str) -> npt.NDArray[np.int64]:
        return np.concatenate([np.array(getattr(session, name)) for session in sessions])[order]

    return Trace(
        name="coding-agents",
        arrived_seconds=np.rint(arrived[order] * 1000) / 1000,
        prompt_tokens=column("prompts"),
        output_tokens=column("outputs"),
        session=np.repeat(np.arange(len(sessions)), lengths)[order],
        turn=np.concatenate([np.arange(length) for length in lengths])[order],
        think_seconds=column("pauses").astype(np.float64),
        prefix_ids=blocks.take(order),
        prefix_block_tokens=BLOCK_TOKENS,
    )


CODING_AGENTS = Workload(
    "coding-agents",
    "agents that code: long sessions, tool pauses, a growing prompt that a prefix cache mostly holds (closed loop)",
    "recorded sessions of callanjfox/kv-cache-tester; starts, context limit and system prompt ours",
    coding_agents,
)
