"""LoRA adapters of a trace: drawn where it names none, kept apart where an engine would, and joined with others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headway.bench.user_mistake import UserMistake
from headway.bench.workloads.workload import stream
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Tokens, Trace

ADAPTERS_MAX = 10_000


def with_adapters(trace: Trace, count: int, seed: int) -> Trace:
    """The trace with one of `count` adapters for each session, and for each request without one.

    Drawn by Zipf's law: `adapter-0` is asked for twice as often as `adapter-1`, and k + 1 times as often as
    `adapter-k`. The same seed gives the first requests the same ones, however many follow.

    Raises:
        UserMistake: the trace names adapters itself, or `count` is out of range.
    """
    if not 1 <= count <= ADAPTERS_MAX:
        raise UserMistake(f"--adapters: {count} is not a number of adapters from 1 to {ADAPTERS_MAX:,}")
    if trace.adapter is not None:
        raise UserMistake(f"{trace.name}: it names its adapters itself; leave --adapters out")
    popularity = 1 / np.arange(1, count + 1)
    draws = stream(seed, "adapters").random(len(trace))
    drawn = np.searchsorted(np.cumsum(popularity / popularity.sum()), draws).clip(max=count - 1).astype(np.int64)
    if trace.session is not None:
        inside = np.flatnonzero(trace.session >= 0)
        _, first, which = np.unique(trace.session[inside], return_index=True, return_inverse=True)
        drawn[inside] = drawn[inside[first]][which]
    return kept_apart(replace(trace, adapter=drawn, adapters=tuple(f"adapter-{rank}" for rank in range(count))))


def kept_apart(trace: Trace) -> Trace:
    """The trace with different prefix ids for different adapters: an engine shares no KV blocks between them."""
    if trace.adapter is None or trace.prefix_ids is None:
        return trace
    blocks = trace.prefix_ids if isinstance(trace.prefix_ids, BlockIds) else BlockIds.of(trace.prefix_ids)
    adapters = np.repeat(trace.adapter, blocks.lengths())
    pairs, ids = np.unique(np.stack((blocks.flat, adapters)), axis=1, return_inverse=True)
    if pairs.shape[1] == len(np.unique(blocks.flat)):
        return trace  # they are apart already
    return replace(trace, prefix_ids=BlockIds(ids.reshape(-1).astype(np.int64), blocks.ends))


def joined_adapters(traces: Sequence[Trace]) -> tuple[Tokens | None, tuple[str, ...]]:
    """The adapters of several traces, one after the other; an equal name is the same adapter."""
    if all(trace.adapter is None for trace in traces):
        return None, ()
    names = tuple(dict.fromkeys(name for trace in traces for name in trace.adapters))
    place = {name: index for index, name in enumerate(names)}
    columns = []
    for trace in traces:
        places = np.array([*(place[name] for name in trace.adapters), -1], dtype=np.int64)  # -1 stands for itself
        columns.append(np.full(len(trace), -1, dtype=np.int64) if trace.adapter is None else places[trace.adapter])
    return np.concatenate(columns), names
