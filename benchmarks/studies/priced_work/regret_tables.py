"""The tables of docs/results/priced-work.md: what holds of the targets, where it loses, and who pays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from textwrap import fill
from typing import Any

from benchmarks.studies.priced_work.regret_cells import (
    GATE,
    GATED_LOADS,
    GATED_MEMORY,
    GATED_ORDERS,
    GATED_REPLICA,
    HALVES,
    LOADS,
    MEMORIES,
)
from benchmarks.studies.priced_work.regret_judging import (
    ALL_FOUR,
    CLOSE,
    HRRN,
    METRICS,
    Cell,
    Verdict,
    beats_hrrn,
    judged,
)

WIDTH = 118  # of a line of prose
WORST = 6  # cells named for each metric
PAYERS = (HRRN, "fcfs", "shortest-prompt-first", "smallest-volume-first")
SHORT: Mapping[str, str] = {
    "fcfs": "FCFS", "shortest-prompt-first": "SPF", "shortest-uncached-prefill-first": "SUPF",
    "shortest-job-first": "SJF", "shortest-job-first-aging": "SJF-aging", "highest-response-ratio": "HRRN",
    "ewsjf": "EWSJF", "ewsjf-published": "EWSJF-published", "ewsjf-authors": "EWSJF-authors",
    "smallest-volume-first": "SVF", "smallest-volume-first-1bit": "SVF-1bit", "fair-share": "fair share",
    "longest-prefix-match": "LPM", "random": "random",
}  # fmt: skip


def summary(cells: Sequence[Cell]) -> list[str]:
    """What holds of the targets, where it loses, and what every other order would have lost."""
    parts = [
        short_section(cells),
        halves_section(cells),
        target_section(cells),
        spread_section(cells),
        worst_section(cells),
        payers_section(cells),
        orders_section(cells),
    ]
    return [line for part in parts for line in [*part, ""]][:-1]


def short_section(cells: Sequence[Cell]) -> list[str]:
    """The targets in words, each met or missed by what was measured."""
    queue = [cell for cell in cells if not cell.calm]
    ours = cells[0].ours
    verdicts = {metric: Verdict.of(queue, ours, metric) for metric in [*METRICS, ALL_FOUR]}
    never = all(verdicts[metric].close == len(queue) for metric in METRICS)
    half = all(2 * verdicts[metric].better >= len(queue) for metric in METRICS)
    hrrn = sum(map(beats_hrrn, queue))
    close = ", ".join(f"{words} {percent(verdicts[m].close / len(queue))}" for m, words in METRICS.items())
    better = ", ".join(f"{words} {percent(verdicts[m].better / len(queue))}" for m, words in METRICS.items())
    sentences = [
        f"Of {len(queue)} queueing cells it is at most 5 % behind the best order of the cell for {close}. Asked "
        f"for was always: {met(never)}.",
        f"It is better than the best for {better}. Asked for was half of the cells: {met(half)}.",
        f"It is better than HRRN in mean and p99 TTFT in {percent(hrrn / len(queue))} of them. Asked for was nine in "
        f"ten: {met(10 * hrrn >= 9 * len(queue))}.",
        *(half_sentence(half, queue) for half in ("training", "test")),
    ]
    told = (fill("- " + one, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for one in sentences)
    return ["## In short", "", *told]


STATISTICS: Mapping[str, str] = {"median": "median", "mean": "geometric mean", "worst": "worst"}


def half_sentence(half: str, queue: Sequence[Cell]) -> str:
    """How far ours is behind in its worst metric, by three statistics, and which order is least behind by each."""
    cells, verdicts = half_verdicts(half, queue)
    if not cells:
        return f"No cell of the {half} half was measured."
    ours = verdicts[cells[0].ours]
    told = []
    for statistic, words in STATISTICS.items():
        least = min(verdicts, key=lambda order: (getattr(verdicts[order], statistic), order))
        value = getattr(ours, statistic)
        beside = "the least" if least == cells[0].ours else f"least: {least}, {getattr(verdicts[least], statistic):.2f}"
        told.append(f"{words} {value:.2f} ({beside})")
    return f"In the worst of its four metrics on the {half} half, {len(cells)} cells: {'; '.join(told)}."


def half_verdicts(half: str, queue: Sequence[Cell]) -> tuple[list[Cell], dict[str, Verdict]]:
    """The cells of a half, and in the worst of four metrics every order that has a row in all of them."""
    names = HALVES["train" if half == "training" else "test"]
    cells = [cell for cell in queue if cell.setting["trace"] in names]
    orders = [order for order in (cells[0].rows if cells else ()) if all(order in cell.rows for cell in cells)]
    return cells, {order: Verdict.of(cells, order, ALL_FOUR) for order in orders}


def halves_section(cells: Sequence[Cell]) -> list[str]:
    """Every order in the worst of four metrics, by halves."""
    lines = [
        "## By halves",
        "",
        "Behind in the worst of the four metrics, every order with a row in each queueing cell of the half. Only the "
        "test half is a fair judge of `priced-work`: its constants were fixed on the other.",
        "",
    ]
    return [*lines, *halves_table([cell for cell in cells if not cell.calm])]


def halves_table(queue: Sequence[Cell]) -> list[str]:
    """A row for each order; of cells that queue."""
    found = {half: half_verdicts(half, queue) for half in ("training", "test")}
    columns = [f"{half} ({len(found[half][0])}): {words}" for half in found for words in STATISTICS.values()]
    lines = [*head(["order", *columns])]
    orders = sorted({order for _, verdicts in found.values() for order in verdicts})
    for order in orders:
        told = []
        for _, verdicts in found.values():
            own = verdicts.get(order)
            told += [f"{getattr(own, statistic):.2f}" if own else "–" for statistic in STATISTICS]
        lines.append(row([f"**{order}**" if order == queue[0].ours else order, *told]))
    return lines


def met(holds: bool) -> str:
    return "**met**" if holds else "**missed**"


def groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The columns of the targets; only those that hold a cell."""
    queue = [cell for cell in cells if not cell.calm]
    found = {
        "all cells": list(cells),
        "queueing": queue,
        "training half": [cell for cell in queue if cell.setting["trace"] in HALVES["train"]],
        "test half": [cell for cell in queue if cell.setting["trace"] in HALVES["test"]],
        "calm": [cell for cell in cells if cell.calm],
    }
    return {name: group for name, group in found.items() if group}


def target_section(cells: Sequence[Cell]) -> list[str]:
    columns = groups(cells)
    ours = cells[0].ours
    lines = ["## Targets", "", *head(["", *(f"{name} ({len(group)})" for name, group in columns.items())])]

    def told(name: str, counted: Any) -> str:
        return row(
            [name, *(f"{counted(group)} ({percent(counted(group) / len(group))})" for group in columns.values())]
        )

    for metric, words in [*METRICS.items(), (ALL_FOUR, "all four at once")]:
        lines.append(told(f"at most 5 % behind the best: {words}", lambda g, m=metric: Verdict.of(g, ours, m).close))
    for metric, words in METRICS.items():
        lines.append(told(f"better than the best: {words}", lambda g, m=metric: Verdict.of(g, ours, m).better))
    lines.append(told("better than HRRN in mean and p99 TTFT", lambda g: sum(map(beats_hrrn, g))))
    lines.append(
        told(
            "not behind HRRN in either by more than 1 %",
            lambda g: sum(all(cell.against_hrrn(m) <= 1.01 for m in ("ttft_mean", "ttft_p99")) for cell in g),
        )
    )
    lines.append(told("closer in its worst metric than any order", lambda g: sum(map(best_all_rounder, g))))
    lines.append(
        told(
            "some order of the catalogue at most 5 % behind in all four",
            lambda g: sum(cell.behind_in_the_worst(cell.all_rounder) <= CLOSE for cell in g),
        )
    )
    return [
        *lines,
        "",
        "Asked for: never more than 5 % behind in any of the four; better than the best in at least half of the cells; "
        "better than HRRN in both in at least nine cells of ten. The last row says how often *one* order of the "
        "catalogue, chosen for the cell, does what is asked in the first: the four metrics have different best orders.",
    ]


def best_all_rounder(cell: Cell) -> bool:
    """Whether ours is less far behind in its worst metric than every order of the catalogue in its own."""
    return cell.behind_in_the_worst(cell.ours) < cell.behind_in_the_worst(cell.all_rounder)


def spread_section(cells: Sequence[Cell]) -> list[str]:
    """Median and worst by load and memory."""
    queue = [cell for cell in cells if not cell.calm]
    lines = [
        "## By load and memory",
        "",
        "Behind the best: median, and share of the queueing cells at most 5 % behind.",
        "",
    ]
    lines += head(["KV memory, load", "cells", *METRICS.values()])
    for memory in MEMORIES:
        for load in LOADS:
            group = [cell for cell in queue if (cell.setting["memory"], cell.load) == (memory, load)]
            if group:
                verdicts = [Verdict.of(group, group[0].ours, metric) for metric in METRICS]
                told = [f"{one.median:.2f}, {percent(one.close / one.cells)}" for one in verdicts]
                lines.append(row([f"{memory}, {load:g}", str(len(group)), *told]))
    return lines


def worst_section(cells: Sequence[Cell]) -> list[str]:
    lines = ["## Where it loses", "", f"For each metric the {WORST} queueing cells in which it is furthest behind.", ""]
    lines += head(["metric", "cell", "behind", "its value", "the best", "which is"])
    queue = [cell for cell in cells if not cell.calm]
    for metric, words in METRICS.items():
        ranked = sorted(queue, key=lambda cell: (-cell.behind(cell.ours, metric), cell.name))
        for cell in ranked[:WORST]:
            best = cell.best(metric)
            values = [number(cell.value(order, metric), metric) for order in (cell.ours, best)]
            told = [words, cell.name, f"{cell.behind(cell.ours, metric):.2f}", *values, SHORT.get(best, best)]
            lines.append(row(told))
    return lines


def payers_section(cells: Sequence[Cell]) -> list[str]:
    """What p99 does not see: the longest wait of all, and the requests with the longest prompts."""
    queue = [cell for cell in cells if not cell.calm]
    lines = [
        "## Who pays",
        "",
        "What the four metrics do not see, in the queueing cells: ours ÷ another order, median and (worst). The "
        "longest TTFT is that of a single request; large prompts are the 5 % of requests with the longest.",
        "",
        *head(["ours ÷", "cells", "longest TTFT", "mean TTFT of large prompts", "p99 TTFT", "mean TTFT"]),
    ]
    for other in PAYERS:
        told = []
        for metric in ("ttft_longest", "ttft_large_prompts", "ttft_p99", "ttft_mean"):
            pairs = [(cell.rows[cell.ours][metric], cell.rows[other][metric]) for cell in queue if other in cell.rows]
            ratios = [mine / theirs for mine, theirs in pairs if mine and theirs]
            told.append(f"{middle(ratios):.2f} ({max(ratios):.3g})" if ratios else "–")
        known = sum(bool(cell.rows[other]["ttft_longest"]) for cell in queue if other in cell.rows)
        lines.append(row([other, str(known), *told]))
    return lines


def orders_section(cells: Sequence[Cell]) -> list[str]:
    queue = [cell for cell in cells if not cell.calm]
    names = dict.fromkeys(order for cell in queue for order in cell.rows)
    lines = [
        "## What every order would have lost",
        "",
        "The same judge for every order, over the queueing cells it has a row in: share of cells at most 5 % behind "
        "the best, and the median and the worst ratio.",
        "",
        *head(["order", "cells", *METRICS.values(), "the worst of the four"]),
    ]
    table = []
    for order in names:
        verdicts = [Verdict.of(queue, order, metric) for metric in [*METRICS, ALL_FOUR]]
        told = [f"{percent(one.close / one.cells)}, {one.median:.2f}, {one.worst:.3g}" for one in verdicts]
        label = f"**{order}**" if order == cells[0].ours else order
        table.append((verdicts[-1].median, row([label, str(verdicts[0].cells), *told])))
    return [*lines, *(line for _, line in sorted(table))]


BOUNDED: Mapping[str, str] = {"e2e_mean": "mean end to end", "ttft_mean": "mean TTFT"}


def bound_section(cells: Sequence[Cell]) -> list[str]:
    """Means over their lower bounds, by load and memory."""
    lines = ["## How far from the best possible", ""]
    lines += ["Seconds ÷ the [lower bound](../bounds.md) that no policy goes below; medians over all cells.", ""]
    columns = [f"{words}: {who}" for words in BOUNDED.values() for who in ("ours", "best order", "FCFS")]
    lines += head(["KV memory, load", "cells", *columns])
    for memory in MEMORIES:
        for load in LOADS:
            group = [cell for cell in cells if (cell.setting["memory"], cell.load) == (memory, load)]
            told = [bounds_of(cell, "e2e_mean") + bounds_of(cell, "ttft_mean") for cell in group]
            if told:
                columns = [median_text(column) for column in zip(*told, strict=True)]
                lines.append(row([f"{memory}, {load:g}", str(len(told)), *columns]))
    return lines


def bounds_of(cell: Cell, metric: str) -> tuple[float | None, float | None, float | None]:
    """(ours, the best of the catalogue, FCFS) ÷ bound."""
    ours, best, fcfs = (cell.times_bound(order, metric) for order in (cell.ours, cell.best(metric), "fcfs"))
    return ours, best, fcfs


def median_text(column: Sequence[float | None]) -> str:
    known = [one for one in column if one is not None]
    return f"{middle(known):.2f}" if known else "–"


def gated_section(settings: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> list[str]:
    """What an admission policy adds, to ours and to the best of some orders."""
    ours = cells[0].ours
    greedy = {(cell.setting["trace"], cell.load): cell for cell in cells if cell.setting["replica"] == GATED_REPLICA
              and cell.setting["memory"] == GATED_MEMORY}  # fmt: skip
    pairs = [(cell, greedy[cell.setting["trace"], cell.load]) for cell in judged(settings, ours, "gated")]
    pairs = [(gated, bare) for gated, bare in pairs if not bare.calm]
    if not pairs:
        return []
    gate = f"admission `{GATE.admission}`, preemption `{GATE.preemption}`, prediction `{GATE.prediction}`"
    words = (
        f"The queueing cells of {GATED_REPLICA} with {GATED_MEMORY} KV at loads "
        f"{' and '.join(f'{load:g}' for load in GATED_LOADS)} once more, all under {gate}. Orders: "
        f"{', '.join(sorted(GATED_ORDERS & {*pairs[0][0].rows}))}. Ratios are medians; below 1 is better."
    )
    lines = ["## With an admission policy", "", fill(words, WIDTH), ""]
    lines += head(["metric", "cells", "ours at most 5 % behind the best of these", "ours behind", "ours with ÷ without",
                   "the best with ÷ without"])  # fmt: skip
    for metric, named in METRICS.items():
        verdict = Verdict.of([gated for gated, _ in pairs], ours, metric)
        own = [change(gated, ours, bare, ours, metric) for gated, bare in pairs]
        best = [change(gated, gated.best(metric), bare, bare.best(metric), metric) for gated, bare in pairs]
        told = [f"{verdict.close} ({percent(verdict.close / verdict.cells)})", f"{verdict.median:.2f}"]
        lines.append(row([named, str(len(pairs)), *told, *(f"{middle(column):.2f}" for column in (own, best))]))
    return [*lines, ""]


def change(gated: Cell, with_gate: str, bare: Cell, without: str, metric: str) -> float:
    """An order's value with the gate ÷ another's without; goodput upside down, so that below 1 is better."""
    mine, theirs = gated.value(with_gate, metric), bare.value(without, metric)
    if metric == "goodput":
        mine, theirs = theirs, mine
    return 1.0 if mine == theirs else mine / theirs if theirs > 0 else inf


def middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def number(value: float, metric: str) -> str:
    """Three significant digits; goodput in per cent."""
    return f"{100 * value:.3g} %" if metric == "goodput" else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def head(names: Sequence[str]) -> Iterator[str]:
    yield row(names)
    yield "|---" * len(names) + "|"


def row(told: Sequence[str]) -> str:
    return "| " + " | ".join(told) + " |"
