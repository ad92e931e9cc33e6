"""The plug-in on vLLM's real scheduler in virtual time: what `virtual_features` finds, in one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "src"
PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
CHECKS = [
    name
    for file in ("virtual_checks.py", "virtual_features.py", "virtual_limits.py")
    for name in re.findall(r"^def (\w+)\(\) -> dict\[str, Any\]:$", (HERE / file).read_text(), re.MULTILINE)
]

pytestmark = pytest.mark.vllm


@cache
def findings() -> dict[str, Any]:
    done = subprocess.run(
        [PYTHON, "-m", "tests.engines.virtual_features"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, ROOT)))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "please report" not in done.stderr, "no request moves between places that `MOVES` does not know"
    return dict(json.loads(done.stdout.splitlines()[-1])["checks"])


def test_every_check_is_known() -> None:
    assert len(CHECKS) > 5
    assert sorted(CHECKS) == sorted(findings())


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_fails(check: str) -> None:
    assert findings()[check]["failures"] == []
