"""Offline requests that share prefixes: what their order saves of prompts, alone and beside online requests.

    python -m benchmarks.studies.offline.prefixes results/prefixes.jsonl  # resumable: what the file has is not played
    python -m benchmarks.studies.offline.prefixes results/prefixes.jsonl --write docs/results/offline.md

Llama-3.1-8B on one H100, vLLM's defaults. Each arm is an order of the same offline requests, which all wait from the
beginning. Alone they are judged until the last has ended, beside online requests until the last of these has. There the
class's gate holds them back by its defaults; alone nothing does.
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
from benchmarks.studies.offline.days import ORDER, DayOver, Listening, online_day
from headway.bench.experiment.bundles import Bundle
from headway.bench.progress import progress
from headway.bench.traces.describing import prefix_hits
from headway.bench.traces.loading import load_trace
from headway.domain.event import Admitted, Event
from headway.simulator.block_ids import BlockIds
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import PluginRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

OFFLINE = ("mooncake_synthetic", "mooncake_conversation", "agentic_coding_weka")
ARMS = ("fcfs", "longest-prefix-match", "shortest-prompt-first", "prefix-groups")
ALONE = "–"
BESIDE = ((ALONE, 0.0), ("azure_code_2023", 0.5), ("azure_conv_2023", 0.5))
BACKLOG = 3_000


class Run(NamedTuple):
    """One run to play."""

    online: str
    load: float
    offline: str
    arm: str


def offline_requests(server: Replica, name: str) -> Trace:
    """The first requests of a trace that fit, all at once; turns of a session do not wait for each other."""
    trace = replace(load_trace(name).trace, session=None, turn=None, think_seconds=None)
    fits = np.flatnonzero(trace.prompt_tokens + trace.output_tokens <= server.rules.context_tokens)[:BACKLOG]
    ids = trace.prefix_ids
    assert ids is not None, f"{name} has no prefix ids"
    return Trace(
        name,
        np.zeros(len(fits)),
        trace.prompt_tokens[fits],
        trace.output_tokens[fits],
        prefix_ids=BlockIds.of([ids[row] for row in fits.tolist()]),
        prefix_block_tokens=trace.prefix_block_tokens,
    )


class Computing(Listening):
    """Counts the offline prompt tokens that the cache held when their requests were admitted, too.

    A look-up is at most a second old then.
    """

    def __init__(self, online: int) -> None:
        super().__init__(online)
        self.admitted: set[object] = set()
        self.cached_tokens = self.prompt_tokens = 0

    def observe(self, event: Event) -> None:
        """Take note of one event."""
        request = event.request
        if isinstance(event, Admitted) and request.is_offline and request.id not in self.admitted:
            self.admitted.add(request.id)
            self.cached_tokens += request.cached_prompt_tokens
            self.prompt_tokens += request.prompt_tokens
        super().observe(event)


def behind(offline: Trace, online: Trace) -> Trace:
    """The offline requests, and after them those of an online day."""
    assert offline.prefix_ids is not None
    return Trace(
        f"{online.name} and {offline.name}",
        np.concatenate([offline.arrived_seconds, online.arrived_seconds]),
        np.concatenate([offline.prompt_tokens, online.prompt_tokens]),
        np.concatenate([offline.output_tokens, online.output_tokens]),
        prefix_ids=BlockIds.of([*offline.prefix_ids, *[[]] * len(online)]),
        prefix_block_tokens=offline.prefix_block_tokens,
        offline=np.arange(len(offline) + len(online)) < len(offline),
    )


def play(server: Replica, run: Run, offline: Trace, online: Trace | None) -> dict[str, Any]:
    """Play one run; its figures."""
    played = _alone(server, run, offline) if online is None else _beside(server, run, offline, online)
    possible = float(prefix_hits(offline).sum() / offline.prompt_tokens.sum())
    return {**run._asdict(), "possible_share": possible, **played}


def _alone(server: Replica, run: Run, offline: Trace) -> dict[str, Any]:
    """Without the class: the order is that of all requests, and no gate holds them back."""
    policies = Bundle(run.arm, run.arm).build(
        costs=server.costs, seed=0, truth=offline.output_tokens.tolist().__getitem__
    )
    day = simulate(offline, server.rules, server.step_time, policies)
    assert not day.refused
    seconds = int(day.ended_ps.max()) / PS_PER_SECOND
    prompts, outputs = int(offline.prompt_tokens.sum()), int(offline.output_tokens.sum())
    return {
        "seconds": seconds,
        "hit_share": float(day.cached_tokens.sum() / prompts),
        "offline_done": len(offline),
        "offline_tokens_per_second": (prompts + outputs) / seconds,
        "offline_output_per_second": outputs / seconds,
        "ttft_p99": None,
    }


def _beside(server: Replica, run: Run, offline: Trace, online: Trace) -> dict[str, Any]:
    trace, heard = behind(offline, online), Computing(len(online))
    policies = Bundle(run.arm, ORDER, offline_ordering=run.arm).build(
        costs=server.costs, seed=0, truth=trace.output_tokens.tolist().__getitem__
    )
    with contextlib.suppress(DayOver):
        simulate(trace, server.rules, server.step_time, policies, plugin=PluginRules(), listeners=[heard])
    assert heard.offline_done < len(offline), "offline requests have to wait until the end"
    return {
        "seconds": heard.ended_at,
        "hit_share": heard.cached_tokens / max(1, heard.prompt_tokens),
        "offline_done": heard.offline_done,
        "offline_tokens_per_second": heard.offline_tokens / heard.ended_at,
        "offline_output_per_second": heard.offline_output / heard.ended_at,
        "ttft_p99": float(np.percentile(heard.ttft, 99)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One row a run; tokens and times as times of first come, first served."""
    cells = (
        "online trace",
        "offline trace",
        "order of offline requests",
        "prompt tokens found in the cache",
        "of possible",
        "offline tokens/s",
        "of fcfs",
        "output tokens/s, of fcfs",
        "online p99 TTFT, of fcfs",
    )
    lines = [_line(cells), _line(["---"] * len(cells))]
    for row in sorted(rows, key=lambda row: _all_runs().index(_run_of(row))):
        base = next(one for one in rows if _run_of(one) == _run_of(row)._replace(arm="fcfs"))
        online = row["online"] if row["online"] == ALONE else f"{row['online']} at {row['load']:g}"
        ttft = ALONE if row["ttft_p99"] is None else f"{row['ttft_p99'] / base['ttft_p99']:.3f}×"
        work = [row[f"offline_{one}_per_second"] / base[f"offline_{one}_per_second"] for one in ("tokens", "output")]
        shares = [f"{100 * row[one]:.1f} %" for one in ("hit_share", "possible_share")]
        tokens = f"{row['offline_tokens_per_second']:,.0f}"
        lines.append(
            _line([online, row["offline"], row["arm"], *shares, tokens, *[f"{one:.2f}×" for one in work], ttft])
        )
    return "\n".join(lines)


def main() -> int:
    """Play what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="JSON Lines, one run a line; made where it is absent")
    parser.add_argument("--write", type=Path, help="put the table into this page instead")
    arguments = parser.parse_args()
    kept = kept_rows(arguments.kept)
    if arguments.write is not None:
        show({"offline-prefixes": table(kept)}, arguments.write)
        return 0
    played = {_run_of(row) for row in kept}
    server, runs = replica("h100", "llama-3.1-8b"), [run for run in _all_runs() if run not in played]
    online: dict[tuple[str, float], Trace | None] = {(ALONE, 0.0): None}
    offline: dict[str, Trace] = {}
    with progress("offline runs", len(runs)) as advance, arguments.kept.open("a", encoding="utf-8") as file:
        for run in runs:
            key = run.online, run.load
            if key not in online:
                online[key] = online_day(server, *key)
            if run.offline not in offline:
                offline[run.offline] = offline_requests(server, run.offline)
            file.write(json.dumps(play(server, run, offline[run.offline], online[key])) + "\n")
            file.flush()
            advance()
    return 0


def _all_runs() -> list[Run]:
    return list(_runs())


def _runs() -> Iterator[Run]:
    for online, load in BESIDE:
        for offline in OFFLINE if online == ALONE else OFFLINE[:2]:
            for arm in ARMS:
                yield Run(online, load, offline, arm)


def _run_of(row: dict[str, Any]) -> Run:
    return Run(*(row[name] for name in Run._fields))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
