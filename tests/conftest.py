"""Settings of all property tests, and the marks of whole folders.

No property test depends on the machine's speed. How many examples one draws is the profile's matter
(`headway.testing.examples`); CI draws few, and the same ones every time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest.register_assert_rewrite("tests.support")

settings.register_profile("headway", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)  # a quarter, always the same
settings.register_profile("deep", deadline=None, max_examples=2_000)  # twenty times as many, for an evening
settings.register_profile(
    "mutants",  # for benchmarks.studies.mutants: few examples, always the same, and no search for a smaller one
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ci" if os.environ.get("CI") else "headway")

HERE = Path(__file__).parent
# Real sockets and processes, real engines, whole simulated days, every law on every policy: left out of the quick loop,
# `pytest -m "not slow"`, as are single tests of more than a second.
SLOW_FOLDERS = {"gateway", "engines", "ray", "parity", "days", "laws"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the slow folders, and skip those on vLLM where there is none."""
    no_vllm = pytest.mark.skip(reason="HEADWAY_VLLM_PYTHON does not name a Python interpreter that has vLLM")
    for item in items:
        if item.get_closest_marker("vllm") and not os.environ.get("HEADWAY_VLLM_PYTHON"):
            item.add_marker(no_vllm)
        if item.path.relative_to(HERE).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
