"""The regret table of docs/results/priced-work.md: how far `priced-work` is behind the best order of each cell.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.priced_work.regret --out CELLS --write

Every public trace × three replicas × KV memory ample and squeezed × four loads, under every order of the catalogue
that finds in the trace what it reads. CELLS is a folder that keeps what was measured: a command that was stopped goes
on where it was, and after a change of an order `--again NAME` takes that order's days anew. A quarter of an hour
on two cores.

    … --out CELLS --traces train --policies priced-work --again priced-work     # a new try, against what CELLS holds
    … --out OTHER --quick                                                       # 1,000 requests, 8B, two loads
    … --out SAMPLE --sample --write                                             # that section of the page

Without --write the summary goes to stdout; --write needs both halves and writes the page and its picture. The sample
(larger models, lower loads) is a section of its own; what the rest of the page says stays, and a new page keeps it.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.studies.priced_work.regret_cells import HALVES, Wanted, measure, read_all
from benchmarks.studies.priced_work.regret_judging import judged
from benchmarks.studies.priced_work.regret_page import page
from benchmarks.studies.priced_work.regret_picture import picture
from benchmarks.studies.priced_work.regret_sample import GROUPS, measure_sample, sample_section, with_sample
from benchmarks.studies.priced_work.regret_tables import summary
from headway.bench.progress import progress
from headway.bench.user_mistake import UserMistake
from headway.policies.catalog import ORDERING

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "results" / "priced-work.md"
PICTURE = ROOT / "docs" / "results" / "priced-work.svg"
OURS = "priced-work"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--traces", choices=list(HALVES), default="all")
    parser.add_argument("--policies", nargs="+", choices=list(ORDERING), help="only these; all by default")
    parser.add_argument("--again", nargs="+", default=[], choices=list(ORDERING), help="measure these anew")
    parser.add_argument("--ours", default=OURS, choices=list(ORDERING), help="the order that is judged")
    parser.add_argument("--quick", action="store_true", help="1,000 requests, 8B, loads 0.9 and 1.1")
    parser.add_argument("--sample", action="store_true", help="the page's sample of larger models and lower loads")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--commit", help="the commit that was measured, for the page")
    parser.add_argument("--write", action="store_true", help="write the page; needs both halves")
    asked = parser.parse_args()
    wanted = Wanted(traces=HALVES[asked.traces], orders=asked.policies)
    if asked.quick:
        wanted = replace(wanted, replicas=("8B",), loads=(0.9, 1.1), requests=1_000)
    try:
        if not os.environ.get("HEADWAY_TRACES"):
            raise UserMistake("HEADWAY_TRACES names no folder; set it to one with the public traces of the table")
        if asked.write and asked.traces != "all":
            raise UserMistake("--write needs both halves; leave --traces out")
        if asked.sample:
            sample(asked)
            return 0
        with progress("measuring", len(wanted.pairs())) as on_done:
            measure(wanted, asked.out, again=asked.again, jobs=asked.jobs, on_done=on_done)
        settings = read_all(wanted, asked.out)
        cells = judged(settings, asked.ours)
        if not cells:
            raise UserMistake(f"--out {asked.out}: no cell has both {asked.ours} and HRRN; drop --policies")
    except UserMistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    if asked.write:
        PAGE.write_text(page(settings, cells, PAGE, wanted, asked.commit), encoding="utf-8")
        PICTURE.write_text(picture(cells), encoding="utf-8")
    else:
        print("\n".join(summary(cells)))
    return 0


def sample(asked: argparse.Namespace) -> None:
    """Measure what is missing of the sample, and print its section or write it into the page."""
    if asked.quick or asked.policies or asked.traces != "all":
        raise UserMistake(
            "--sample has its own requests, loads, orders and traces; leave --quick, --policies, --traces out"
        )
    with progress("measuring", sum(len(group.pairs()) for group in GROUPS)) as on_done:
        measure_sample(asked.out, again=asked.again, jobs=asked.jobs, on_done=on_done)
    if asked.write:
        old = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_sample(old, asked.out, asked.ours, commit=asked.commit), encoding="utf-8")
    else:
        print("\n".join(sample_section(asked.out, asked.ours, commit=asked.commit)))


if __name__ == "__main__":
    sys.exit(main())
