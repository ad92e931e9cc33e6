"""The command line of the studies that measure the plug-in on the cells of the regret table."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.studies.priced_work import regret_cells as cells


def cell_options(description: str | None, *, long_requests: int) -> argparse.Namespace:
    """What was typed; the folder `out` is made. `long_requests` is how many of a long trace are taken by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what was measured")
    parser.add_argument("--page", type=Path, help="page whose tables to replace; printed without it")
    parser.add_argument("--requests", type=int, default=1_000, help="first requests of each trace")
    parser.add_argument(
        "--long-requests", type=int, default=long_requests, help="of traces with long prompts or answers"
    )
    parser.add_argument("--traces", nargs="+", default=cells.TRACES, help="which")
    typed = parser.parse_args()
    typed.out.mkdir(parents=True, exist_ok=True)
    return typed
