"""Settings of all property tests: no test depends on the machine's speed, and CI draws the same examples every time."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")

settings.register_profile("headway", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "headway")
