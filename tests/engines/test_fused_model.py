"""`headway.fusion` on a real model of torch and transformers, which are in vLLM's environment and not in ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.vllm


def test_a_real_model_keeps_what_is_promised(written_model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, str(ROOT / "tests" / "engines" / "fused_checks.py"), str(written_model / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all checks passed"
