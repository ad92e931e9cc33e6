"""`headway.fusion` on a real model of torch and transformers, which are in vLLM's environment and not in ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.vllm


def test_a_real_model_keeps_what_is_promised(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for script, argument in (("support/real_model.py", tmp_path), ("engines/fused_checks.py", tmp_path / "model")):
        done = subprocess.run(
            [PYTHON, ROOT / "tests" / script, argument], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all checks passed"
