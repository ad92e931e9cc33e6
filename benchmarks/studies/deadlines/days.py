"""Days whose clients give deadlines, and days of several tenants, under the orders that read them.

    python -m benchmarks.studies.deadlines.days results/deadlines.jsonl --half train  # resumable
    python -m benchmarks.studies.deadlines.days results/deadlines.jsonl --write docs/results/deadlines.md

Llama-3.1-8B on one H100, vLLM's defaults, lengths learned (`histogram`). No public trace names a deadline, so the study
gives them by one rule, the same for all orders. One process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kept_rows import kept_rows
from benchmarks.page_tables import show
from benchmarks.studies.priced_work.regret_cells import HALVES
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.progress import progress
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import part
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

SEED = 0
REQUESTS = 4_000
LOADS = (1.1, 1.5)
TRACES = ("azure_conv_2023", "servegen_m_mid", "azure_code_2023", "servegen_m_large")
TENANTS = ("servegen_m_mid", "servegen_mm_image")
CHAT_SHARE, CALL_SHARE = 0.5, 0.25  # of the requests; the rest are stages of programs
TTFT_SECONDS, TPOT_SECONDS, END_SECONDS = 2.0, 0.1, 20.0
STAGES_MOST, PAUSE_SECONDS = 6, 1.0
PATIENCES = (1.0, 2.0, 5.0, 15.0)  # of the days with a deadline for the first token alone, seconds
BY_DEADLINE = (
    *("fcfs", "earliest-deadline-first", "deadline-plus-work", "qoserve", "modified-due-date", "goodput-first"),
    *("jitserve", "highest-response-ratio", "priced-work"),
)
ORDERS = {
    "kinds": BY_DEADLINE,
    "first": BY_DEADLINE[:6],
    "tenants": (
        "fcfs",
        "fair-share",
        "weighted-fair-queue",
        "fair-share/priced-work",
        "weighted-fair-queue/priced-work",
    ),
}
FIGURES = {
    "kinds": {
        "share": "token goodput",
        "tokens": "in time, tokens/s",
        "ttft": "mean TTFT, s",
        "e2e": "mean end to end, s",
    },
    "first": {
        "tardiness": "total tardiness, s",
        "goodput": "in time",
        "ttft": "mean TTFT, s",
        "ttft_p99": "p99 TTFT, s",
    },
    "tenants": {
        "jain": "Jain index",
        "ttft": "mean TTFT, s",
        "ttft_p99": "p99 TTFT, s",
        "tenant": "worst tenant's mean, s",
    },
}


class Day(NamedTuple):
    """One day to play: a trace's first window at a load, its kind, and an order."""

    kind: str
    trace: str
    load: float
    order: str

    @property
    def half(self) -> str:
        return "train" if self.trace in HALVES["train"] else "test"


def of_kinds(trace: Trace) -> Trace:
    """Chats with bounds on TTFT and TPOT, calls with a deadline of their end, and programs of 2 to 6 stages.

    The stages of a program are requests that came one after another; each is sent a second after the one before it has
    ended. The program may take `END_SECONDS` a stage, pauses included. Its client does not say how many stages it has.
    """
    chance = np.random.default_rng(SEED)
    drawn = chance.random(len(trace))
    chat, call = drawn < CHAT_SHARE, (drawn >= CHAT_SHARE) & (drawn < CHAT_SHARE + CALL_SHARE)
    rows = np.flatnonzero(~chat & ~call)
    program, stage, whole = np.full(len(trace), -1), np.zeros(len(trace), np.int64), np.full(len(trace), np.nan)
    number, at = 0, 0
    while at < len(rows):
        stages = rows[at : at + int(chance.integers(2, STAGES_MOST + 1))]
        program[stages], stage[stages] = number, np.arange(1, len(stages) + 1)
        whole[stages] = END_SECONDS * len(stages)
        number, at = number + 1, at + len(stages)
    return replace(
        trace,
        deadline_seconds=np.where(chat, TTFT_SECONDS, np.nan),
        tpot_deadline_seconds=np.where(chat, TPOT_SECONDS, np.nan),
        end_deadline_seconds=np.where(call, END_SECONDS, np.nan),
        program=program,
        stage=stage,
        program_deadline_seconds=whole,
        session=program,
        turn=np.maximum(stage - 1, 0),
        think_seconds=np.where(stage > 1, PAUSE_SECONDS, 0.0),
    )


def of_first_tokens(trace: Trace) -> Trace:
    """Every request has a deadline for its first token, drawn from `PATIENCES`."""
    return replace(trace, deadline_seconds=np.random.default_rng(SEED).choice(PATIENCES, len(trace)))


KINDS: dict[str, Callable[[Trace], Trace]] = {
    "kinds": of_kinds,
    "first": of_first_tokens,
    "tenants": lambda trace: trace,
}


def play(day: Day, server: Replica) -> dict[str, Any]:
    """The figures of one day."""
    trace = KINDS[day.kind](Saturation(_saturation(day.trace), "", False).at_load(window(day.trace), day.load))
    prediction = "running-mean" if day.order == "fcfs" else "histogram"
    outcome = simulate_bundle(trace, server, Bundle(day.order, day.order, prediction=prediction), SEED)
    alone = unloaded_seconds(trace, server.rules, server.step_time) if day.kind == "tenants" else None
    found = summarise(trace, outcome, Slo(), alone, kv_blocks=server.rules.kv_blocks)
    started = outcome.first_token_ps >= 0
    waited = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
    figures = {
        "share": found.token_goodput_share,
        "tokens": found.token_goodput_tokens_per_second,
        "goodput": None if trace.deadline_seconds is None else in_time(trace, waited, started),
        "ttft": found.ttft_seconds.mean,
        "ttft_p99": found.ttft_seconds.p99,
        "e2e": found.e2e_seconds.mean,
        "tardiness": found.total_tardiness_seconds,
        "jain": found.jain_index,
    }
    if trace.tenant is not None and day.kind == "tenants":
        means = [waited[started & (trace.tenant == tenant)] for tenant in np.unique(trace.tenant)]
        figures["tenant"] = float(max(values.mean() for values in means if len(values) >= 20))
    return day._asdict() | figures


def in_time(trace: Trace, waited: Any, started: Any) -> float:
    """Share of the requests with a deadline for their first token whose first token came in time."""
    assert trace.deadline_seconds is not None
    named = ~np.isnan(trace.deadline_seconds)
    return float((started & (waited <= trace.deadline_seconds))[named].mean())


@lru_cache(maxsize=8)
def window(trace: str) -> Trace:
    """The first requests of a trace; all of them fit the replica."""
    first = part(whole := load_trace(trace).trace, 0, min(REQUESTS, len(whole)))
    assert (first.prompt_tokens + first.output_tokens <= _server().rules.context_tokens).all()
    return first


@lru_cache(maxsize=1)
def _server() -> Replica:
    return replica("h100", "llama-3.1-8b")


@lru_cache(maxsize=8)
def _saturation(trace: str) -> float:
    return measure_saturation(
        window(trace), lambda day: simulate_bundle(day, _server(), Bundle("fcfs"), SEED)
    ).requests_per_second


def days(half: str) -> Iterator[Day]:
    """All days of a half."""
    for kind, orders in ORDERS.items():
        for trace in TENANTS if kind == "tenants" else TRACES:
            for load in LOADS:
                for order in orders:
                    day = Day(kind, trace, load, order)
                    if day.half == half:
                        yield day


def table(rows: Sequence[dict[str, Any]], kind: str, half: str) -> str:
    """A row a trace and load, a column an order: the first figure of the kind."""
    figure = next(iter(FIGURES[kind]))
    lines = [_line(("trace", "load", *ORDERS[kind])), _line(["---"] * (2 + len(ORDERS[kind])))]
    for (trace, load), found in _whole(rows, kind, half).items():
        lines.append(_line([trace, f"{load:g}", *(_shown(found[order][figure]) for order in ORDERS[kind])]))
    return "\n".join(lines)


def means(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """A row an order: the means of its figures over the days of each half."""
    halves = ("train", "test") if kind == "kinds" else ("train",)
    titles = [f"{title} ({half})" if len(halves) > 1 else title for half in halves for title in FIGURES[kind].values()]
    lines = [_line(("order", *titles)), _line(["---"] * (1 + len(titles)))]
    for order in ORDERS[kind]:
        cells = [
            _shown(float(np.mean([found[order][figure] for found in _whole(rows, kind, half).values()])))
            for half in halves
            for figure in FIGURES[kind]
        ]
        lines.append(_line([order, *cells]))
    return "\n".join(lines)


def _whole(rows: Sequence[dict[str, Any]], kind: str, half: str) -> dict[tuple[str, float], dict[str, dict[str, Any]]]:
    """Trace and load → order → its figures, of those that every order has played."""
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for day in days(half):
        if day.kind == kind:
            found.setdefault((day.trace, day.load), {})
    for row in rows:
        place = row["trace"], row["load"]
        if row["kind"] == kind and place in found:
            found[place][row["order"]] = row
    return {place: orders for place, orders in found.items() if len(orders) == len(ORDERS[kind])}


def main() -> int:
    """Play what is missing of a half, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="JSON Lines, one day a line; made where it is absent")
    parser.add_argument("--half", choices=("train", "test"), default="train")
    parser.add_argument("--kinds", nargs="+", choices=tuple(ORDERS), default=tuple(ORDERS))
    parser.add_argument("--write", type=Path, help="put the tables into this page instead")
    arguments = parser.parse_args()
    kept = kept_rows(arguments.kept)
    if arguments.write is not None:
        texts = {f"deadlines-{kind}": means(kept, kind) for kind in ORDERS}
        show(
            texts | {f"deadlines-kinds-{half}": table(kept, "kinds", half) for half in ("train", "test")},
            arguments.write,
        )
        return 0
    played = {Day(*(row[name] for name in Day._fields)) for row in kept}
    missing = [day for day in days(arguments.half) if day not in played and day.kind in arguments.kinds]
    with progress("days with deadlines", len(missing)) as advance, arguments.kept.open("a", encoding="utf-8") as file:
        for day in missing:
            file.write(json.dumps(play(day, _server())) + "\n")
            file.flush()
            advance()
    return 0


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
