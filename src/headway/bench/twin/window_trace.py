"""A window of live traffic as a trace to replay, and as a recording of what its engines really took."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.recording import Recording
from headway.simulator.trace import Trace
from headway.tuning.drift import ks_distance
from headway.twin.look_messages import TwinLook
from headway.twin.switch_rules import REQUESTS_MIN
from headway.twin.traffic_window import PREFIX_BLOCK_TOKENS

Floats = npt.NDArray[np.float64]
_SKIPPED_SHARE_MAX = 0.4
_SMOOTHED = 20  # requests
_QUIET_SECONDS = 0.05
_CHANGED, _CUT_EVERY = 0.3, 50
"""Kolmogorov–Smirnov distance of prompt lengths from which on traffic is another one, and requests between two cuts
that are tried. On six whole days of the training half no cut of a window of 4,000 had more than 0.25, and two of those
traces one behind the other had 0.35 or more (benchmarks/studies/auto)."""
UNJUDGED_SHARE = 0.3
"""Of the requests that are replayed: until then the replayed engine is emptier than the real one was."""


def floats(look: TwinLook, column: str) -> Floats:
    """A column of numbers, NaN where a value is not known."""
    return np.array([np.nan if value is None else value for value in look.columns[column]], np.float64)


class ReplayedWindow(NamedTuple):
    """The requests to replay.

    Attributes:
        look: whose columns are those of the replayed rows.
        trace: them; the first `filling` rows were inside when it begins, and stand for what the engines held then.
        filling: rows that are replayed and not counted.
        ttft_seconds: measured, of the counted rows: of one that waits still, how long it has; NaN where unknown.
        horizon_seconds: of the counted rows, how long ago each came: no longer TTFT can have been measured.
        is_after_switch: of the counted rows, those that came since the last switch.
        changed_at: when the traffic became another one, seconds on the window's clock; None if it did not.
    """

    look: TwinLook
    trace: Trace
    filling: int
    ttft_seconds: Floats
    horizon_seconds: Floats
    is_after_switch: npt.NDArray[np.bool_]
    changed_at: float | None


def window_of(look: TwinLook) -> ReplayedWindow:
    """The window from that moment of its first part on at which requests waited least, with what was inside then.

    What came before a change of the traffic is not counted. A replay begins with an empty engine. So what waited at
    that moment arrives at once, and what ran arrives as the rest of its answer behind a prompt of one token.
    """
    arrived, started, ended = (floats(look, name) for name in ("arrived_at", "started_at", "ended_at"))
    changed = changed_row(floats(look, "prompt_tokens"))
    first = changed + _quietest((started - arrived)[changed:])
    begins = arrived[first] if len(arrived) else 0.0
    rows = np.arange(len(arrived))
    waits, runs = (rows < first) & ~(started <= begins), (rows < first) & (started <= begins) & ~(ended <= begins)
    left = np.clip(np.nan_to_num((ended - begins) / np.maximum(ended - started, 1e-9), nan=0.5), 0.0, 1.0)
    columns = {name: list(values) for name, values in look.columns.items()}
    for row in np.flatnonzero(runs):
        columns["prompt_tokens"][row], columns["prefix"][row] = 1, []
        output = columns["output_tokens"][row]
        columns["output_tokens"][row] = None if output is None else max(1, round(output * left[row]))
    for row in np.flatnonzero(runs | waits):
        columns["arrived_at"][row] = begins
    kept = [*np.flatnonzero(runs), *np.flatnonzero(waits), *rows[first:]]
    there = replace(look, columns={name: [values[row] for row in kept] for name, values in columns.items()})
    counted = slice(len(kept) - (len(rows) - first), None)
    arrived = floats(there, "arrived_at")[counted]
    horizon = look.now - arrived
    answered, ended = floats(there, "first_token_at")[counted], floats(there, "ended_at")[counted]
    ttft = np.where(np.isnan(answered) & np.isnan(ended), horizon, answered - arrived)
    after = arrived >= (-np.inf if look.switched_at is None else look.switched_at)
    changed_at = float(look.columns["arrived_at"][changed]) if changed else None
    return ReplayedWindow(there, trace_of(there), counted.start, ttft, horizon, after, changed_at)


def changed_row(prompt_tokens: Floats) -> int:
    """The first request of the traffic as it is now, by the lengths of prompts; 0 where they did not change.

    The cut between two samples that differ most, weighed by their sizes; then the same again behind it.
    """
    first = 0
    while True:
        rest = prompt_tokens[first:]
        cuts = range(REQUESTS_MIN, len(rest) - REQUESTS_MIN + 1, _CUT_EVERY)
        distances = [ks_distance(rest[:cut], rest[cut:]) for cut in cuts]
        weighed = [distance * math.sqrt(cut * (len(rest) - cut)) for cut, distance in zip(cuts, distances, strict=True)]
        at = int(np.argmax(weighed)) if weighed else 0
        if not weighed or distances[at] < _CHANGED:
            return first
        first += cuts[at]


def _quietest(waited: Floats) -> int:
    rows = int(len(waited) * _SKIPPED_SHARE_MAX)
    if rows < 2 * _SMOOTHED:
        return 0
    known = np.where(np.isfinite(waited), waited, np.nanmax(waited, initial=0.0))[: rows + _SMOOTHED]
    smooth = np.convolve(known, np.ones(_SMOOTHED) / _SMOOTHED, "valid")[:rows]
    return int(np.flatnonzero(smooth <= smooth.min() + _QUIET_SECONDS)[0])


def trace_of(look: TwinLook) -> Trace:
    """The window as it arrived. A request that has not ended is as long as the mean of those that have."""
    return _trace(look, floats(look, "arrived_at"), np.arange(len(look.columns["arrived_at"])))


def engine_recording(look: TwinLook, requests_max: int) -> Recording | None:
    """What one engine, the busiest, took from the start of each request: waits in front of it are left out.

    Of the latest `requests_max`, those that have not ended as load only; None where fewer than 20 were measured.
    """
    started, ended, replica = floats(look, "started_at"), floats(look, "ended_at"), look.columns["replica"]
    known = np.isfinite(started)
    if not known.any():
        return None
    busiest = np.bincount(np.array(replica)[known]).argmax()
    rows = np.flatnonzero(known & (np.array(replica) == busiest))
    rows = rows[np.argsort(started[rows], kind="stable")][-requests_max:]
    judged = np.arange(len(rows)) >= len(rows) * UNJUDGED_SHARE
    ttft = np.where(judged, floats(look, "first_token_at")[rows] - started[rows], np.nan)
    e2e = np.where(judged, ended[rows] - started[rows], np.nan)
    if np.isfinite(e2e).sum() < 20:
        return None
    return Recording(_trace(look, started, rows), ttft, e2e, "the engine")


def _trace(look: TwinLook, times: Floats, rows: npt.NDArray[np.int64]) -> Trace:
    columns = look.columns

    def whole(name: str, unknown: float) -> npt.NDArray[np.int64]:
        values = floats(look, name)
        return np.where(np.isfinite(values), values, unknown).round().astype(np.int64)[rows]

    output = floats(look, "output_tokens")
    mean = float(np.nanmean(output)) if np.isfinite(output).any() else 1.0
    prefixes: list[list[int]] = [columns["prefix"][row] for row in rows]

    def spans(name: str) -> Floats | None:
        seconds = floats(look, name)[rows]
        return seconds if np.isfinite(seconds).any() else None

    program = np.array(columns["program"], np.int64)[rows]
    has_programs = bool((program >= 0).any())
    tenant = np.array(columns["tenant"], np.int64)[rows]
    return Trace(
        "the latest requests",
        times[rows] - (times[rows[0]] if len(rows) else 0.0),
        np.maximum(whole("prompt_tokens", 1), 1),
        np.maximum(whole("output_tokens", mean), 1),
        max_output_tokens=whole("max_output_tokens", 0),
        tenant=np.maximum(tenant, 0),
        tenants=tuple(f"tenant-{number}" for number in range(int(tenant.max(initial=0)) + 1)),
        prefix_ids=_whole_prefixes(prefixes, columns["prompt_tokens"], rows) if any(prefixes) else None,
        prefix_block_tokens=PREFIX_BLOCK_TOKENS,
        deadline_seconds=spans("deadline_seconds"),
        tpot_deadline_seconds=spans("tpot_deadline_seconds"),
        end_deadline_seconds=spans("end_deadline_seconds"),
        program=program if has_programs else None,
        stage=whole("stage", 0) if has_programs else None,
        stages=whole("stages", 0) if has_programs else None,
        program_deadline_seconds=spans("program_deadline_seconds") if has_programs else None,
        priority=whole("priority", 0),
    )


def _whole_prefixes(prefixes: list[list[int]], prompts: Any, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Ids of all blocks of each prompt: behind the hashes that are known, its own and nobody else's."""
    fresh = max((max(known) for known in prefixes if known), default=-1) + 1
    filled = []
    for known, row in zip(prefixes, rows, strict=True):
        blocks = -(-int(prompts[row]) // PREFIX_BLOCK_TOKENS)
        own = range(fresh, fresh + max(0, blocks - len(known)))
        fresh += len(own)
        filled.append([*known[:blocks], *own])
    return filled
