"""Days of online traffic with a backlog of offline requests: what offline work gets done, and what online pays for it.

    python -m benchmarks.studies.offline.days results/offline.jsonl  # resumable: a day that the file has is not played
    python -m benchmarks.studies.offline.days results/offline.jsonl --write docs/results/offline.md

Llama-3.1-8B on one H100, vLLM's defaults, the plug-in's default order. Each day ends with its last online request. The
offline requests all wait from the beginning and are more than can be served. One process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kept_rows import kept_rows
from benchmarks.page_tables import show
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import at_rate, measure_saturation
from headway.bench.progress import progress
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head, repeated
from headway.domain.event import Arrived, Completed, Event, FirstToken
from headway.scheduling.offline_gate import OfflineRules
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import PluginRules
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

ONLINE = ("azure_conv_2023", "azure_code_2023", "servegen_m_large", "servegen_mm_image", "lengths_apex_mix")
OFFLINE = ("lengths_arxiv_summarization", "lengths_sharegpt_8k")
LOADS = (0.3, 0.5, 0.7, 0.9)
REQUESTS, BACKLOG = 1_200, 8_000
ORDER = "highest-response-ratio"
ARMS = ("none", "priority", "0.02", "0.05", "0.1", "0.2")  # shares, besides those without the class
WITHIN = 1.02  # unchanged: a p99 of at most so many times that without offline work
_P99S = ("ttft_p99", "tpot_p99")
_TIMES = {"ttft_p99": "p99 TTFT", "tpot_p99": "p99 TPOT", "ttft_mean": "mean TTFT", "tpot_mean": "mean TPOT"}


class Day(NamedTuple):
    """One day to play."""

    online: str
    load: float
    offline: str
    arm: str


class DayOver(Exception):
    """The day ends."""


class Listening:
    """Times of online requests, tokens of offline ones; ends the day with the last online request."""

    def __init__(self, online: int) -> None:
        self.left = online
        self.ttft: list[float] = []
        self.tpot: list[float] = []
        self.offline_done = self.offline_output = 0
        self.offline_tokens = 0
        self.ended_at = 0.0
        self._arrived: dict[object, float] = {}
        self._first: dict[object, float] = {}

    def observe(self, event: Event) -> None:
        """Take note of one event."""
        request = event.request
        offline = request.is_offline or request.priority > 0
        match event:
            case Arrived(at=at) if not offline:
                self._arrived[request.id] = request.arrived_at
            case FirstToken(at=at) if offline:
                self.offline_tokens += request.prompt_tokens
            case FirstToken(at=at):
                self.ttft.append(at - self._arrived.pop(request.id))
                self._first[request.id] = at
            case Completed(at=at, output_tokens=tokens) if offline:
                self.offline_done += 1
                self.offline_output += tokens
                self.offline_tokens += tokens
            case Completed(at=at, output_tokens=tokens):
                if tokens > 1:
                    self.tpot.append((at - self._first.pop(request.id)) / (tokens - 1))
                self.ended_at = at
                self.left -= 1
                if not self.left:
                    raise DayOver
            case _:
                pass


def online_day(server: Replica, name: str, load: float) -> Trace:
    """The first requests of a trace at a share of saturation, at their own times as nearly as that allows."""
    trace = head(load_trace(name).trace, REQUESTS)
    fits = trace.prompt_tokens + trace.output_tokens <= server.rules.context_tokens
    assert fits.all(), f"{name} has requests that do not fit"
    return at_rate(trace, load * measure_saturation(trace, lambda day: _fcfs(server, day)).requests_per_second)


def with_backlog(online: Trace, name: str, *, priority: bool) -> Trace:
    """A day's requests behind a backlog; `priority`: its requests are of a lower priority, not of the class."""
    offline = load_trace(name).trace
    offline = head(repeated(offline, -(-BACKLOG // len(offline))), BACKLOG)
    late = np.concatenate([np.zeros(len(offline), dtype=bool), np.ones(len(online), dtype=bool)])
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(offline, name), getattr(online, name)])
        for name in ("prompt_tokens", "output_tokens")
    }
    arrived = np.concatenate([np.zeros(len(offline)), online.arrived_seconds])
    trace = Trace(f"{online.name} and offline", arrived, **joined)
    if priority:
        return replace(trace, priority=np.where(late, 0, 1))
    return replace(trace, offline=~late)


def play(server: Replica, day: Day, online: Trace) -> dict[str, Any]:
    """Play one day; its figures."""
    trace, order, rules = online, ORDER, OfflineRules()
    if day.arm == "priority":
        trace, order = with_backlog(online, day.offline, priority=True), "priority"
    elif day.arm != "none":
        trace, rules = with_backlog(online, day.offline, priority=False), OfflineRules(share=float(day.arm))
    heard = Listening(len(online))
    policies = Bundle(order, order).build(costs=server.costs, seed=0, truth=trace.output_tokens.tolist().__getitem__)
    with contextlib.suppress(DayOver):
        simulate(trace, server.rules, server.step_time, policies, plugin=PluginRules(offline=rules), listeners=[heard])
    seconds = heard.ended_at
    return {
        **day._asdict(),
        "seconds": seconds,
        "ttft_mean": float(np.mean(heard.ttft)),
        "ttft_p99": float(np.percentile(heard.ttft, 99)),
        "tpot_mean": float(np.mean(heard.tpot)),
        "tpot_p99": float(np.percentile(heard.tpot, 99)),
        "offline_done": heard.offline_done,
        "offline_tokens_per_second": heard.offline_tokens / seconds,
        "offline_output_per_second": heard.offline_output / seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One row a day: its figures, those of online requests as times of the day without offline work."""
    head_cells = (
        "online trace",
        "load",
        "offline trace",
        "arm",
        *_TIMES.values(),
        "offline tokens/s",
        "of them output",
    )
    lines = [_line(head_cells), _line(["---"] * len(head_cells))]
    for row in sorted(rows, key=_place):
        base = _alone(rows, row)
        alone = row["arm"] == "none"
        times = [f"{row[one]:.3f} s" if alone else f"{row[one] / base[one]:.3f}×" for one in _TIMES]
        work = [f"{row[f'offline_{one}_per_second']:,.0f}" for one in ("tokens", "output")]
        names = row["online"], f"{row['load']:g}", "–" if alone else row["offline"], _shown(row["arm"])
        lines.append(_line([*names, *times, *work]))
    return "\n".join(lines)


def unchanged(rows: list[dict[str, Any]]) -> str:
    """For each day the most offline tokens a second at which both p99s, or that of TTFT alone, stay within 2 %."""
    head_cells = (
        "online trace",
        "load",
        "offline trace",
        "both p99s within 2 %",
        "p99 TTFT within 2 %",
        "priority alone",
    )
    lines = [_line(head_cells), _line(["---"] * len(head_cells))]
    days = sorted({(row["online"], row["load"], row["offline"]) for row in rows if row["arm"] != "none"})
    for online, load, offline in days:
        arms = {
            row["arm"]: row
            for row in rows
            if (row["online"], row["load"], row["offline"]) == (online, load, offline) and row["arm"] != "none"
        }
        cells = [online, f"{load:g}", offline]
        for measures in (_P99S, _P99S[:1]):
            good = [
                row
                for arm, row in arms.items()
                if arm != "priority" and all(row[one] <= WITHIN * _alone(rows, row)[one] for one in measures)
            ]
            best = max(good, key=lambda row: row["offline_tokens_per_second"], default=None)
            cells.append("none" if best is None else f"{_work(best)} (share {best['arm']})")
        priority = arms.get("priority")
        cells.append(
            ""
            if priority is None
            else f"{_work(priority)}, p99 TTFT {priority['ttft_p99'] / _alone(rows, priority)['ttft_p99']:.2f}×"
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def by_arm(rows: list[dict[str, Any]]) -> str:
    """For each arm, over all days: the median and the worst of what online pays, the median of offline work."""
    head_cells = ("arm", "p99 TTFT, median and worst", "p99 TPOT, median and worst", "offline tokens/s, median")
    lines = [_line(head_cells), _line(["---"] * len(head_cells))]
    for arm in ARMS[1:]:
        days = [row for row in rows if row["arm"] == arm]
        if not days:
            continue
        ratios = {one: np.array([row[one] / _alone(rows, row)[one] for row in days]) for one in _P99S}
        pairs = [f"{np.median(ratios[one]):.3f}×, {ratios[one].max():.2f}×" for one in _P99S]
        work = np.median([row["offline_tokens_per_second"] for row in days])
        lines.append(_line([_shown(arm), *pairs, f"{work:,.0f}"]))
    return "\n".join(lines)


def missing(kept: list[dict[str, Any]]) -> list[Day]:
    """The days that are not played yet."""
    played = {Day(*(row[name] for name in Day._fields)) for row in kept}
    return [day for day in _all_days() if day not in played]


def main() -> int:
    """Play what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="JSON Lines, one day a line; made where it is absent")
    parser.add_argument("--write", type=Path, help="put the tables into this page instead")
    arguments = parser.parse_args()
    kept = kept_rows(arguments.kept)
    if arguments.write is not None:
        show(
            {"offline-days": table(kept), "offline-unchanged": unchanged(kept), "offline-arms": by_arm(kept)},
            arguments.write,
        )
        return 0
    server, days = replica("h100", "llama-3.1-8b"), missing(kept)
    online: dict[tuple[str, float], Trace] = {}
    with progress("offline days", len(days)) as advance, arguments.kept.open("a", encoding="utf-8") as file:
        for day in days:
            key = day.online, day.load
            if key not in online:
                online = {key: online_day(server, *key)}
            file.write(json.dumps(play(server, day, online[key])) + "\n")
            file.flush()
            advance()
    return 0


def _all_days() -> Iterator[Day]:
    for name in ONLINE:
        for load in LOADS:
            yield Day(name, load, "", "none")
            for offline in OFFLINE:
                for arm in ARMS[1:]:
                    yield Day(name, load, offline, arm)


def _alone(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The same day without offline work."""
    key = row["online"], row["load"], "none"
    return next(one for one in rows if (one["online"], one["load"], one["arm"]) == key)


def _place(row: dict[str, Any]) -> tuple[object, ...]:
    return row["online"], row["load"], row["offline"], ARMS.index(row["arm"])


def _shown(arm: str) -> str:
    return arm if arm in ("none", "priority") else f"share {arm}"


def _work(row: dict[str, Any]) -> str:
    return f"{row['offline_tokens_per_second']:,.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fcfs(server: Replica, trace: Trace) -> DayOutcome:
    policies = Bundle("fcfs", "fcfs").build(costs=server.costs, seed=0, truth=trace.output_tokens.tolist().__getitem__)
    return simulate(trace, server.rules, server.step_time, policies)


if __name__ == "__main__":
    sys.exit(main())
