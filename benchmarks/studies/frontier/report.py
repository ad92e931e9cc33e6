"""The tables and the picture of docs/results/frontier.md, from a folder of days.

    python -m benchmarks.studies.frontier.report --days DAYS [--write] [--halves training test]

Without --write the tables go to stdout. The test half is judged only where it is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from benchmarks.page_tables import show
from benchmarks.studies.frontier.days import Cell, Day, cells_of, read
from benchmarks.studies.frontier.judging import (
    ALSO,
    CLOSE,
    OBJECTIVES,
    OURS,
    Choice,
    FrontierVerdict,
    choose,
    is_calm,
    judge_frontier,
)
from benchmarks.studies.frontier.picture import picture
from benchmarks.studies.priced_work.regret_cells import HALVES
from headway.bench.progress import progress

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "results" / "frontier.md"
PICTURE = ROOT / "docs" / "results" / "frontier.svg"
TRACES = {"training": HALVES["train"], "test": HALVES["test"]}
WHO = ("recommended", "naive", "default", "fcfs", "gittins")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=Path, required=True)
    parser.add_argument("--halves", nargs="+", choices=list(TRACES), default=["training"])
    parser.add_argument("--loads", nargs="+", type=float, default=[0.9, 1.1])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    verdicts: list[FrontierVerdict] = []
    choices: list[Choice] = []
    for half in asked.halves:
        cells = cells_of(TRACES[half], ["8B"], asked.loads)
        with progress(f"judging the {half} half", len(cells)) as on_done:
            for cell in cells:
                _judge(asked.days, cell, verdicts, choices)
                on_done()
    texts = {
        "frontier": frontier_table(verdicts),
        "beaten": beaten_table(verdicts),
        "recommend": recommend_table(choices),
        "choices": choices_table(choices),
    }
    show(texts, PAGE if asked.write else None)
    if asked.write:
        PICTURE.write_text(picture(choices), encoding="utf-8")
    return 0


def _judge(days: Path, cell: Cell, verdicts: list[FrontierVerdict], choices: list[Choice]) -> None:
    first, second = (_whole(read(days, cell, number)) for number in (0, 1))
    for number, day in ((0, first), (1, second)):
        if day is not None and not is_calm(day):
            verdicts.append(judge_frontier(cell, number, day))
    if first is not None and second is not None and not is_calm(second):
        choices += [choose(cell, 0, first, second, one) for one in (*OBJECTIVES.values(), *ALSO.values())]


def _whole(day: Day | None) -> Day | None:
    """The day, if every family of ours has been simulated in it."""
    if day is None or any(not any(label.startswith(name) for label in day.arms) for name in (*OURS, "random")):
        return None
    return day


def frontier_table(verdicts: Sequence[FrontierVerdict]) -> str:
    lines = [
        "| half | windows that queue | none of our frontier is beaten | every outside order is matched within 3 % |",
        "|---|---|---|---|",
    ]
    for half in TRACES:
        mine = [one for one in verdicts if one.cell.half == half]
        if mine:
            cells = (
                half,
                len(mine),
                _share([not one.beaten for one in mine]),
                _share([not one.uncovered for one in mine]),
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def beaten_table(verdicts: Sequence[FrontierVerdict]) -> str:
    lines = ["| window | ours | beaten by | its mean is lower by a factor of |", "|---|---|---|---|"]
    for one in verdicts:
        if one.beaten:
            worst = one.beaten[0]
            place = f"{one.cell.name}, window {one.number + 1}"
            lines.append(f"| {place} | {worst.ours} | {worst.other} | {worst.times:.2f} |")
    return "\n".join(lines)


def recommend_table(choices: Sequence[Choice]) -> str:
    lines = [
        "| half | objective | pairs | choice | within 5 % of the best | geometric mean | worst "
        "| at most 3 % worse than the default | at most the default's | worst ÷ default's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for half in TRACES:
        for objective in (*OBJECTIVES, *ALSO):
            mine = [one for one in choices if one.cell.half == half and one.objective == objective]
            lines += [_who_row(half, objective, mine, who) for who in WHO if mine]
    return "\n".join(lines)


def _who_row(half: str, objective: str, mine: Sequence[Choice], who: str) -> str:
    behind = [one.behind[who] for one in mine]
    against = [one.behind[who] / one.behind["default"] for one in mine]
    shown = f"**{who}**" if who == "recommended" else who
    cells = (
        half,
        objective,
        str(len(mine)),
        shown,
        _share([ratio <= CLOSE for ratio in behind]),
        f"{geometric_mean(behind):.3f}",
        f"{max(behind):.2f}",
        _share([ratio <= 1.03 for ratio in against]),
        _share([ratio <= 1.0001 for ratio in against]),
        f"{max(against):.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def choices_table(choices: Sequence[Choice]) -> str:
    """Each pair of the three objectives with a target."""
    lines = [
        "| cell | objective | recommended | times the best | naive | times the best | default "
        "| best of the second window | alike |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in choices:
        if one.objective in OBJECTIVES:
            told = one.behind
            cells = (
                one.cell.name,
                one.objective,
                one.chosen,
                f"{told['recommended']:.2f}",
                one.naive,
                f"{told['naive']:.2f}",
                f"{told['default']:.2f}",
                one.best,
                str(one.alike),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(found: Sequence[bool]) -> str:
    return f"{sum(found)} ({100 * sum(found) / len(found):.0f} %)"


if __name__ == "__main__":
    sys.exit(main())
