"""The comparison with vLLM's scheduler, on other versions of it: one command, a line a version.

    HEADWAY_VLLM_PYTHON=PYTHON_WITH_VLLM python -m tests.parity.versions [--folder DIR] [--every N] [--version 0.28.0 …]

Nothing is installed: see `tests/engines/version_matrix.py`, which unpacks the versions. Days are the generated ones, or
every N-th of them; for each that differs the first step that does is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.engines import version_matrix
from tests.parity import test_vllm_parity as parity


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".vllm-versions"), help="where versions are unpacked")
    parser.add_argument("--every", type=int, default=1, help="compare every N-th generated day")
    parser.add_argument("--version", action="append", help="which; all of the version matrix if left out")
    typed = parser.parse_args()
    if not parity.PYTHON:
        parser.error("HEADWAY_VLLM_PYTHON does not name a Python interpreter that has vLLM")
    typed.folder.mkdir(exist_ok=True)
    different = 0
    for version in typed.version or version_matrix.VERSIONS:
        different += check(version, typed.folder.resolve(), typed.every)
    return 1 if different else 0


def check(version: str, folder: Path, every: int) -> int:
    """How many days differ; says which, and where first."""
    packages = (
        version_matrix.unpack(parity.PYTHON, version, folder),
        version_matrix.side_packages(parity.PYTHON, folder),
    )
    days = [*parity.GENERATED.values()][::every]
    try:
        answers = parity.ask_vllm(days, *packages)
    except AssertionError as error:
        print(f"{version}: did not run: {str(error).strip().splitlines()[-1]}", flush=True)
        return len(days)
    found = {}
    for day in days:
        try:
            parity.compare(day, answers[day.name])
        except AssertionError:
            steps = [parity.as_record(step) for step in answers[day.name]["steps"]]
            found[day.name] = parity.first_difference(parity.our_day(day)[1], steps).splitlines()
    print(f"{version}: {len(days) - len(found)} of {len(days)} days equal", flush=True)
    for name, lines in found.items():
        print(f"  {name}", *(f"    {line[:300]}" for line in lines[:4]), sep="\n", flush=True)
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
