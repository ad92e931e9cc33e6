"""Chains: requests that must follow each other. A session in a closed loop is one; any other request is a chain of one.

In a closed loop the next turn arrives when the turn before has ended and the client has thought. So the latencies of a
chain telescope: their sum is its last completion, less its first arrival, less the think time. A lower bound of last
completions is therefore one of the sum of latencies, although arrivals depend on the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Chains:
    """The m chains of a trace that get served, k requests in all; times in picoseconds.

    Attributes:
        rows: rows of the trace, chain after chain, each in the order of its turns, (k,).
        starts: where each chain begins in `rows`, (m,).
        arrived_ps: arrival of each chain's first request, (m,).
        think_ps: the client's pauses between the turns of each chain, all together, (m,).
    """

    rows: Ints
    starts: Ints
    arrived_ps: Ints
    think_ps: Ints

    def sums(self, values: Floats) -> Floats:
        """Sum over each chain of one value a request (in the order of `rows`)."""
        return np.add.reduceat(values, self.starts) if len(self.starts) else np.zeros(0)

    def __len__(self) -> int:
        return len(self.starts)


def chains(trace: Trace, rules: EngineRules) -> Chains:
    """Chains of the requests that a replica with these rules serves.

    Which requests these are does not depend on the policy: one is refused for its lengths or its adapter, and with it
    all later turns of its session (`simulator.arrivals.why_never`).
    """
    rows, links = _in_order(trace)
    fits = ((trace.prompt_tokens + trace.output_tokens <= rules.context_tokens) & _has_adapter(trace, rules))[rows]
    heads = np.flatnonzero(~links)
    chain_of = np.cumsum(~links) - 1
    # A turn is served iff no turn up to it in its chain is refused.
    refused_before = np.cumsum(~fits)
    base = np.concatenate(([0], refused_before))[heads] if len(heads) else np.zeros(0, np.int64)
    served = refused_before == base[chain_of] if len(rows) else np.zeros(0, bool)
    rows, links = rows[served], links[served]
    starts = np.flatnonzero(~links)
    arrived = _picoseconds(trace.arrived_seconds)[rows]
    think = np.zeros(len(rows), np.int64)
    if trace.think_seconds is not None:
        think = np.where(links, _picoseconds(trace.think_seconds)[rows], 0)
    return Chains(
        rows=rows,
        starts=starts,
        arrived_ps=arrived[starts],
        think_ps=np.add.reduceat(think, starts) if len(starts) else np.zeros(0, np.int64),
    )


def _has_adapter(trace: Trace, rules: EngineRules) -> npt.NDArray[np.bool_]:
    """Which requests want an adapter that the replica serves, or the base model."""
    if trace.adapter is None:
        return np.ones(len(trace), dtype=bool)
    return np.array([*map(rules.serves, trace.adapters), True])[trace.adapter]  # -1, the last, is the base model


def _in_order(trace: Trace) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """(rows so that chains lie together, whether each follows the one before it in its chain)."""
    count = len(trace)
    if trace.session is None or trace.turn is None:
        return np.arange(count), np.zeros(count, bool)
    rows = np.lexsort((trace.turn, trace.session))
    session = trace.session[rows]
    links = np.zeros(count, bool)
    links[1:] = (session[1:] >= 0) & (session[1:] == session[:-1])
    return rows, links


def _picoseconds(seconds: Floats) -> Ints:
    return np.rint(seconds * PS_PER_SECOND).astype(np.int64)
