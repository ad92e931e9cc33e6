"""Outcome of a fleet's day: that of its requests, and what each replica did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.simulator.outcome import DayOutcome, Ints, LoadPoints

_CURVE_POINTS = 4_096


@dataclass(frozen=True, slots=True)
class ReplicaOutcome:
    """What one replica did.

    Attributes:
        id: its name.
        requests: sent to it, those that went elsewhere since included.
        completed: of these, served to their end.
        prefill_tokens: prompt tokens it computed, those computed again included.
        decode_tokens: tokens of its decode steps, those wasted by asynchronous scheduling included.
        busy_ps: picoseconds of its steps.
        steps: how many, those without tokens not counted.
        kv_blocks: it has.
        kv_blocks_peak: most in use at once.
        load: over the day.
    """

    id: str
    requests: int
    completed: int
    prefill_tokens: int
    decode_tokens: int
    busy_ps: int
    steps: int
    kv_blocks: int
    kv_blocks_peak: int
    load: LoadPoints


@dataclass(frozen=True, slots=True)
class FleetOutcome:
    """A fleet's day.

    Attributes:
        day: of all requests. Its curves are sums over the replicas; `kv_blocks_peak` is that of the replica which came
            nearest to its own memory, in blocks of that replica.
        replica: by row of the trace, the index of the replica that served the request last; -1 where none did.
        replicas: one for each replica, in order.
        moves: of requests from one replica to another, by a rescheduling policy.
    """

    day: DayOutcome
    replica: Ints
    replicas: tuple[ReplicaOutcome, ...]
    moves: int = 0


def joined(loads: Sequence[LoadPoints]) -> LoadPoints:
    """The load of one replica whose engine was started again, part after part."""
    if len(loads) == 1:
        return loads[0]
    columns = ([value for load in loads for value in load[place]] for place in range(4))
    return LoadPoints(*columns)


def summed(loads: Sequence[LoadPoints]) -> LoadPoints:
    """The load of all replicas together; of one replica it is that one, point by point."""
    if len(loads) == 1:
        return loads[0]
    times = np.unique(np.concatenate([np.array(load.at_ps, np.int64) for load in loads]))
    if len(times) > 2 * _CURVE_POINTS:  # as many as an eye can see
        times = np.unique(times[np.linspace(0, len(times) - 1, _CURVE_POINTS).astype(np.int64)])
    totals = np.zeros((3, len(times)), np.int64)
    for load in loads:
        place = np.searchsorted(np.array(load.at_ps, np.int64), times, side="right")
        for number, values in enumerate((load.waiting, load.running, load.blocks)):
            totals[number] += np.array([0, *values], np.int64)[place]
    return LoadPoints(times.tolist(), *totals.tolist())


def fullest(replicas: Sequence[ReplicaOutcome]) -> ReplicaOutcome:
    """The replica whose memory was fullest."""
    return max(replicas, key=lambda replica: replica.kv_blocks_peak / replica.kv_blocks)
