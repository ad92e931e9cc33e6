"""The table of docs/results/auto.md, from the folder of `measure.py`.

python -m benchmarks.studies.auto.report FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.auto.days import DEFAULT
from benchmarks.studies.auto.measure import OBJECTIVES

SHOWN = {"mean-ttft": "mean-ttft", "p99-ttft": "p99-ttft", "goodput": "missed", "balanced": "mean-ttft"}


def main() -> None:
    """Print a line for each day and objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(
        "| objective | day | requests | auto | default | what it began with, all day | best fixed of 16 "
        "| best switcher tried | auto ÷ best fixed | auto ÷ default "
        "| later switches, the first at | worst harm to one request |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for objective in OBJECTIVES:
        for file in sorted(given.folder.glob(f"*.{objective}.json")):
            print(line(json.loads(file.read_text(encoding="utf-8"))))


def line(found: Mapping[str, Any]) -> str:
    """One row."""
    rows = {row["label"]: row for row in found["rows"]}
    measure = SHOWN[found["objective"]]
    fixed = [row for label, row in rows.items() if label not in ("auto", "hindsight")]
    best = min(fixed, key=lambda row: float(row["behind"]))
    auto, default = rows["auto"], rows[DEFAULT.ordering]
    began, later = _began(found)
    first = rows.get(began)
    switches = f"{len(later)}, {later[0][0]:.0f} s" if later else "0"
    harm = found["worst_harm"]
    cells = (
        found["objective"],
        f"`{found['day']}`",
        f"{found['requests']:,}, {found['seconds'] / 60:.0f} min",
        _shown(measure, auto),
        _shown(measure, default),
        f"{_shown(measure, first)} `{began}`" if first is not None else "–",
        f"{_shown(measure, best)} `{best['label']}`",
        _shown(measure, rows["hindsight"]) if "hindsight" in rows else "–",
        f"{auto['behind'] / best['behind']:.2f}",
        f"{auto['behind'] / default['behind']:.2f}",
        switches,
        f"{max(0.0, harm['seconds']):.0f} s of {harm['then_waited']:.0f} s",
    )
    return "| " + " | ".join(cells) + " |"


def _began(found: Mapping[str, Any]) -> tuple[str, list[tuple[float, str]]]:
    """The order that it began with, as the candidates are labelled, and the switches after that."""
    switches = [(float(at), str(label)) for at, label in found["switches"]]
    if switches and "begins with" in found["sentences"][0]:
        return switches[0][1].replace(".0)", ")"), switches[1:]
    return DEFAULT.ordering, switches


def _shown(measure: str, row: Mapping[str, Any]) -> str:
    return f"{100 * row[measure]:.1f}% missed" if measure == "missed" else f"{row[measure]:.2f} s"


if __name__ == "__main__":
    main()
