"""Makes a trace ready for replicas: what they cannot hold is refused or cut, and every request gets a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from headway.bench.experiment.saturation import is_closed_loop, open_loop
from headway.bench.metrics.run_metrics import Slo
from headway.bench.traces.loading import LoadedTrace
from headway.bench.traces.reshaping import check_context
from headway.bench.user_mistake import UserMistake
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace

OverContextChoice: TypeAlias = Literal["error", "refuse", "cut"]


def prepare(
    loaded: LoadedTrace,
    servers: Sequence[Replica],
    slo: Slo,
    note: Callable[[str], None],
    *,
    over_context: OverContextChoice = "error",
    opened: bool = False,
) -> tuple[Replica, Trace]:
    """The replica that holds the longest requests, and the trace as it will be replayed.

    Args:
        loaded: the traffic.
        servers: what serves it, at least one.
        slo: its bound on TTFT is the deadline of requests that name none.
        note: told each change of the trace, a sentence each.
        over_context: what happens to requests longer than that replica holds.
        opened: replay sessions at their recorded times, without waiting for answers.

    Raises:
        UserMistake: the trace does not fit the replicas.
    """
    for server in servers:
        _check_prefix_blocks(server, loaded.trace)
    server = max(servers, key=lambda one: one.rules.context_tokens)
    rules = server.rules
    words = {"limit": "the replica's KV memory", "holds_more": "more --kv-tokens"}
    trace, notes = check_context(
        loaded.trace,
        rules.context_tokens,
        over_context,
        lines=loaded.lines,
        **(words if rules.context_tokens < rules.max_model_tokens else {}),
    )
    for sentence in notes:
        note(sentence)
    if opened and is_closed_loop(trace):
        trace = open_loop(trace)
    return server, _with_deadlines(trace, slo)


def _check_prefix_blocks(server: Replica, trace: Trace) -> None:
    """Raise UserMistake if the replica caches prefixes and the trace's prefix blocks are no multiple of its own."""
    block_tokens = server.rules.block_tokens
    if server.rules.prefix_caching and trace.prefix_ids is not None and trace.prefix_block_tokens % block_tokens:
        raise UserMistake(
            f"{trace.name}: its prefix blocks hold {trace.prefix_block_tokens} tokens, which is no multiple of the "
            f"replica's {block_tokens}; give --prefix-caching off"
        )


def _with_deadlines(trace: Trace, slo: Slo) -> Trace:
    """In a trace without deadlines, every request gets the TTFT SLO as its deadline."""
    if trace.deadline_seconds is not None or trace.has_later_deadlines or slo.ttft_seconds is None:
        return trace
    return replace(trace, deadline_seconds=np.full(len(trace), slo.ttft_seconds), deadline_is_slo=True)
