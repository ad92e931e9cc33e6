"""Tables of the fleet study, made from its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.studies.fleet.cells import Cell, Setting

Row = Mapping[str, Any]
_RANKED = {"ttft_mean": "mean TTFT", "ttft_p99": "p99 TTFT", "e2e_mean": "mean end to end"}


def traces_table(settings: Sequence[Setting]) -> str:
    """What was replayed: requests, copies of sessions, and load 1 of the fleet."""
    lines = head(["trace", "requests", "of them copies of", "load 1, requests/s"])
    for setting in settings:
        facts = setting.facts
        first = f"the first {facts['asked_requests']:,}" if facts["copies"] > 1 else "none"
        rate = facts["saturation"]
        told = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
        lines.append(line([setting.trace, f"{facts['requests']:,}", first, told]))
    return "\n".join(lines)


def load_tables(settings: Sequence[Setting], cells: Sequence[Cell]) -> str:
    """A table for each trace: a row for each routing policy, a column for each load and order."""
    columns = dict.fromkeys((cell.load, cell.ordering) for cell in cells)
    titles = [f"{load:g}, {_SHORT.get(order, order)}" for load, order in columns]
    return _by_routing(settings, cells, titles, with_hits=True)


def age_tables(settings: Sequence[Setting], cells: Sequence[Cell]) -> str:
    """A table for each trace: a row for each routing policy, a column for each queue and age of the figures."""
    columns = dict.fromkeys((cell.queue, cell.signal_seconds) for cell in cells)
    places = {"gateway": "in front", "replicas": "pushed"}
    titles = [f"{places[queue]}, {age:g} s" if age else f"{places[queue]}, exact" for queue, age in columns]
    return _by_routing(settings, cells, titles, with_hits=False)


def _by_routing(settings: Sequence[Setting], cells: Sequence[Cell], titles: Sequence[str], *, with_hits: bool) -> str:
    """A table for each trace: a row for each routing policy that was run on it, a column for each title."""
    parts = []
    for setting in settings:
        lines = [f"`{setting.trace}`:", "", *head(["routing", *titles])]
        for routing in dict.fromkeys(cell.routing for cell in cells):
            of_routing = [cell for cell in cells if cell.routing == routing]
            told = [_told(setting.row(cell), with_hits=with_hits) for cell in of_routing]
            if any(text != _ABSENT for text in told):
                lines.append(line([routing, *told]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def ranking(settings: Sequence[Setting], cells: Sequence[Cell]) -> str:
    """How far each routing policy is behind the best of its cell: geometric mean over all cells, and the worst one."""
    by_metric = {metric: behind(settings, cells, metric) for metric in _RANKED}
    order = sorted(by_metric["ttft_mean"], key=lambda name: _mean(by_metric["ttft_mean"][name]))
    lines = head(["routing", *[f"{title}, mean (worst)" for title in _RANKED.values()]])
    for name in order:
        ratios = [by_metric[metric][name] for metric in _RANKED]
        told = [f"{_mean(each):.2f} ({max(each):.2f})" if each else _ABSENT for each in ratios]
        lines.append(line([name, *told]))
    counted = len(by_metric["ttft_mean"][order[0]])
    return "\n".join([*lines, "", f"Over {counted} cells."])


def behind(settings: Sequence[Setting], cells: Sequence[Cell], metric: str) -> dict[str, list[float]]:
    """Routing policy → its seconds ÷ the best's, for each cell in which all of them were measured."""
    routings = list(dict.fromkeys(cell.routing for cell in cells))
    found: dict[str, list[float]] = {routing: [] for routing in routings}
    for setting in settings:
        groups: dict[tuple[Any, ...], dict[str, float]] = {}
        for cell in cells:
            row = setting.row(cell)
            if row is not None and row[metric]:
                key = (cell.load, cell.queue, cell.ordering, cell.signal_seconds)
                groups.setdefault(key, {})[cell.routing] = row[metric]
        for group in groups.values():
            if len(group) == len(routings):
                best = min(group.values())
                for routing, seconds in group.items():
                    found[routing].append(seconds / best)
    return found


def _mean(ratios: Sequence[float]) -> float:
    """Geometric mean; infinite where nothing was measured."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else math.inf


_ABSENT = "–"
_SHORT = {"highest-response-ratio": "HRR"}


def _told(row: Row | None, *, with_hits: bool) -> str:
    if row is None:
        return _ABSENT
    text = f"{seconds(row['ttft_mean'])}, {seconds(row['ttft_p99'])}"
    if not with_hits:
        return text
    hits = "" if row["hit_share"] is None else f"; {100 * row['hit_share']:.0f} %"
    return f"{text}{hits}; {row['imbalance']:.2f}"


def seconds(value: float) -> str:
    """Three digits at most, and no more than three behind the point."""
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def head(titles: Sequence[str]) -> list[str]:
    """Head of a table, all columns but the first aligned to the right."""
    return [line(titles), "|---|" + "---:|" * (len(titles) - 1)]


def line(parts: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(parts)} |"
