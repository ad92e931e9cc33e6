"""Reshapes traces: cuts, scales, merges, and fits them into a context window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headway.bench.traces.adapters import joined_adapters
from headway.bench.user_mistake import UserMistake
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace

Rows = npt.NDArray[np.int64]
_COLUMNS = (
    "arrived_seconds", "prompt_tokens", "output_tokens", "max_output_tokens", "tenant", "session", "turn",
    "think_seconds", "deadline_seconds", "tpot_deadline_seconds", "end_deadline_seconds", "program", "stage", "stages",
    "program_deadline_seconds", "priority", "offline", "adapter",
)  # fmt: skip
_NUMBERED = ("tenant", "session", "program", "adapter")  # whose numbers mean something else in each trace
_MEASURED = (
    "measured_ttft_seconds",
    "measured_e2e_seconds",
)  # true only for the requests and arrivals that were served
_NOT_MEASURED: dict[str, Any] = dict.fromkeys(_MEASURED)


def head(trace: Trace, requests: int) -> Trace:
    """The first `requests` requests; all of them where there are fewer.

    Of a session it keeps the turns up to some point, never one without those before it, because turns stand in order.
    Tenants, adapters and sessions that are left without a request are forgotten.

    Raises:
        UserMistake: fewer than one request.
    """
    if requests < 1:
        raise UserMistake(f"--requests: {requests} is too few; give a whole number from 1")
    if requests >= len(trace):
        return trace
    return part(trace, 0, requests)


def part(trace: Trace, first: int, end: int) -> Trace:
    """The requests from row `first` up to row `end`, which is left out, alone."""
    return taken(trace, np.arange(first, end))


def taken(trace: Trace, rows: Rows) -> Trace:
    """These rows alone, rising; tenants, adapters and sessions that are left without a request are forgotten."""
    return _compacted(_taken(trace, rows))


def scale_arrivals(trace: Trace, rate_factor: float) -> Trace:
    """The same requests, arriving `rate_factor` times as fast.

    Of a session only the start moves: its later turns keep their distance to it, and pauses stay as they are.

    Raises:
        UserMistake: the factor is not a number above 0.
    """
    if not (np.isfinite(rate_factor) and rate_factor > 0):
        raise UserMistake(f"the factor {rate_factor} of arrivals is not a number above 0; give 2 for twice as fast")
    start = _session_began(trace)
    moved = start / rate_factor + (trace.arrived_seconds - start)
    trace = replace(trace, **_NOT_MEASURED)
    if trace.session is None:
        return replace(trace, arrived_seconds=moved)
    order = np.argsort(moved, kind="stable")
    return _taken(replace(trace, arrived_seconds=moved), order)


def merge(traces: Sequence[Trace], name: str | None = None) -> Trace:
    """Several traces at once, all starting at 0.

    A tenant of trace `t` becomes `t/tenant`, or `t` where tenants have no name, so that tenants of different traces
    stay apart; so do sessions, programs and prefix blocks.

    Raises:
        UserMistake: there is nothing to merge, or prefix blocks are of different sizes.
    """
    if not traces:
        raise UserMistake("there is no trace to merge; name at least one")
    if len(traces) == 1:
        return traces[0]
    sizes = {trace.prefix_block_tokens for trace in traces if trace.prefix_ids is not None}
    if len(sizes) > 1:
        raise UserMistake(
            f"the traces have prefix blocks of {' and '.join(str(size) for size in sorted(sizes))} tokens; "
            "merge only traces with the same"
        )
    names = _distinct([trace.name for trace in traces])
    parts = [_apart(trace, label) for trace, label in zip(traces, names, strict=True)]
    merged = {column: _joined(parts, column) for column in _COLUMNS if column not in _NUMBERED}
    adapter, adapters = joined_adapters(parts)
    tenant_starts = np.cumsum([0, *(len(part.tenants) for part in parts)])
    whole = Trace(
        name=name or "+".join(names),
        **merged,  # type: ignore[arg-type]
        tenant=np.concatenate([_column(part, "tenant") + at for part, at in zip(parts, tenant_starts, strict=False)]),
        tenants=tuple(tenant for part in parts for tenant in part.tenants),
        session=_joined_numbers(parts, "session"),
        program=_joined_numbers(parts, "program"),
        adapter=adapter,
        adapters=adapters,
        prefix_ids=_joined_blocks(parts),
        prefix_block_tokens=next(iter(sizes), 512),
    )
    return _taken(whole, np.argsort(whole.arrived_seconds, kind="stable"))


def repeated(trace: Trace, copies: int) -> Trace:
    """The trace so many times, one copy after the other; copies share neither sessions, programs nor prefix blocks.

    A copy starts as long after the last request, or the last start of a session, as these follow each other on average.

    Raises:
        UserMistake: fewer than one copy.
    """
    if copies < 1:
        raise UserMistake(f"{copies} copies of {trace.name} are too few; give a whole number from 1")
    if copies == 1:
        return trace
    starts = trace.arrived_seconds[session_starts(trace)]
    period = float(starts[-1] - starts[0]) * len(starts) / max(1, len(starts) - 1)
    parts = [replace(trace, arrived_seconds=trace.arrived_seconds + copy * period) for copy in range(copies)]
    columns: dict[str, Any] = {
        column: _joined_numbers(parts, column) if column in ("session", "program") else _joined(parts, column)
        for column in _COLUMNS
    }
    blocks = _joined_blocks(parts)
    whole = replace(trace, **columns, prefix_ids=blocks, **_NOT_MEASURED)
    return _taken(whole, np.argsort(whole.arrived_seconds, kind="stable"))


def session_starts(trace: Trace) -> npt.NDArray[np.bool_]:
    """Which rows wait for no earlier answer: the first turn of each session, and requests without a session."""
    starts = np.ones(len(trace), np.bool_)
    if trace.session is not None and trace.turn is not None:
        order = np.lexsort((trace.turn, trace.session))
        session = trace.session[order]
        starts[order[1:]] = (session[1:] < 0) | (session[1:] != session[:-1])
    return starts


def check_context(
    trace: Trace,
    context_tokens: int,
    over_context: Literal["error", "refuse", "cut"] = "error",
    *,
    lines: Sequence[int] | Rows | None = None,
    holds_more: str = "a --model with a longer one",
    limit: str = "the model's context",
) -> tuple[Trace, list[str]]:
    """Handle requests whose prompt and output together are longer than the replica can hold.

    Args:
        trace: the requests.
        context_tokens: prompt and output tokens of the longest request that it can hold.
        over_context: "error" refuses the trace; "refuse" leaves it as it is, for the replica to refuse those requests;
            "cut" takes tokens off the prompt's end, and off the output only where it alone fills the context.
        lines: the line in the file of each request, to name it by.
        holds_more: what to ask for instead, in the words of the command line.
        limit: what sets `context_tokens`, in words.

    Returns:
        The trace to use, and notes for the user.

    Raises:
        UserMistake: over_context is "error" and a request is too long, or "refuse" and all are; names the first such
            request and the fix.
    """
    over = trace.prompt_tokens + trace.output_tokens > context_tokens
    count = int(over.sum())
    if not count:
        return trace, []
    row = int(over.argmax())
    if over_context == "refuse" and count == len(trace):
        shortest = int((trace.prompt_tokens + trace.output_tokens).min())
        raise UserMistake(
            f"{trace.name}: every request is past {limit} of {context_tokens:,} tokens, the shortest with "
            f"{shortest:,}; give {holds_more}"
        )
    if over_context == "error":
        where = f"request {row + 1}" if lines is None else f"line {lines[row]}"
        others = f" (and {count - 1:,} more)" if count > 1 else ""
        raise UserMistake(
            f"{trace.name}: {where}{others}: {trace.prompt_tokens[row]:,} prompt + {trace.output_tokens[row]:,} output "
            f"tokens are past {limit} of {context_tokens:,}; give --over-context refuse (or cut), or {holds_more}"
        )
    are = "is" if count == 1 else "are"
    share = f"{trace.name}: {count:,} of {len(trace):,} requests {are} past {limit} of {context_tokens:,}"
    if over_context == "refuse":
        return trace, [f"{share} and will be refused"]
    return _cut_to(trace, context_tokens), [f"{share}; their prompts are cut to fit"]


def _cut_to(trace: Trace, context_tokens: int) -> Trace:
    output = np.minimum(trace.output_tokens, context_tokens - 1)
    prompt = np.minimum(trace.prompt_tokens, context_tokens - output)
    blocks = trace.prefix_ids
    if blocks is not None:
        packed = _blocks(trace)
        needed = -(-prompt // trace.prefix_block_tokens)
        blocks = packed.cut(np.arange(len(trace)), np.minimum(packed.lengths(), needed))
    return replace(trace, prompt_tokens=prompt, output_tokens=output, prefix_ids=blocks, **_NOT_MEASURED)


def _session_began(trace: Trace) -> npt.NDArray[np.float64]:
    """For each request when its session began; its own arrival outside sessions."""
    if trace.session is None:
        return trace.arrived_seconds
    inside = trace.session >= 0
    first = np.full(int(trace.session.max(initial=-1)) + 1, np.inf)
    np.minimum.at(first, trace.session[inside], trace.arrived_seconds[inside])
    starts = trace.arrived_seconds.copy()
    starts[inside] = first[trace.session[inside]]
    return starts


def _taken(trace: Trace, rows: Rows) -> Trace:
    columns: dict[str, Any] = {
        column: None if (kept := getattr(trace, column)) is None else kept[rows] for column in (*_COLUMNS, *_MEASURED)
    }
    blocks = None if trace.prefix_ids is None else _blocks(trace).take(rows)
    return replace(trace, **columns, prefix_ids=blocks)


def _compacted(trace: Trace) -> Trace:
    changes: dict[str, object] = {}
    if trace.tenant is not None:
        kept, tenant = np.unique(trace.tenant, return_inverse=True)
        changes |= {"tenant": tenant.astype(np.int64), "tenants": tuple(trace.tenants[index] for index in kept)}
    for name in ("session", "program"):
        if (numbers := getattr(trace, name)) is not None:
            known, number = np.unique(numbers, return_inverse=True)
            changes[name] = number.astype(np.int64) - int(known[0] == -1)
    if trace.adapter is not None:
        wanted, adapter = np.unique(trace.adapter[trace.adapter >= 0], return_inverse=True)
        column = np.full(len(trace), -1, dtype=np.int64)
        column[trace.adapter >= 0] = adapter
        changes |= {"adapter": column, "adapters": tuple(trace.adapters[index] for index in wanted)}
    return replace(trace, **changes)  # type: ignore[arg-type]


def _blocks(trace: Trace) -> BlockIds:
    ids = trace.prefix_ids
    if ids is None:
        return BlockIds(np.empty(0, dtype=np.int64), np.zeros(len(trace) + 1, dtype=np.int64))
    return ids if isinstance(ids, BlockIds) else BlockIds.of(ids)


def _column(trace: Trace, column: str) -> npt.NDArray[np.int64]:
    kept = getattr(trace, column)
    if kept is not None:
        return kept  # type: ignore[no-any-return]
    if column == "offline":
        return np.zeros(len(trace), dtype=np.bool_)
    unknown = np.nan if column.endswith("deadline_seconds") else 0
    default = -1 if column in ("session", "adapter", "program") else unknown
    return np.full(len(trace), default, dtype=np.float64 if column.endswith("_seconds") else np.int64)


def _joined(traces: Sequence[Trace], column: str) -> npt.NDArray[np.int64] | None:
    if all(getattr(trace, column) is None for trace in traces):
        return None
    return np.concatenate([_column(trace, column) for trace in traces])


def _joined_numbers(traces: Sequence[Trace], column: str) -> npt.NDArray[np.int64] | None:
    """Sessions or programs, those of each trace apart from those of the others."""
    if all(getattr(trace, column) is None for trace in traces):
        return None
    parts, begin = [], 0
    for trace in traces:
        numbers = _column(trace, column)
        parts.append(np.where(numbers >= 0, numbers + begin, -1))
        begin += int(numbers.max(initial=-1)) + 1
    return np.concatenate(parts)


def _joined_blocks(traces: Sequence[Trace]) -> BlockIds | None:
    if all(trace.prefix_ids is None for trace in traces):
        return None
    flat, lengths, begin = [], [], 0
    for trace in traces:
        blocks = _blocks(trace).shifted(begin)
        flat.append(blocks.flat)
        lengths.append(blocks.lengths())
        begin = max(begin, int(blocks.flat.max(initial=-1)) + 1)
    ends = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64)
    return BlockIds(np.concatenate(flat), ends)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one occurs twice."""
    return [name if names.count(name) == 1 else f"{name}-{at + 1}" for at, name in enumerate(names)]


def _apart(trace: Trace, label: str) -> Trace:
    tenants = tuple(f"{label}/{tenant}" if tenant else label for tenant in trace.tenants)
    return replace(trace, tenants=tenants)
