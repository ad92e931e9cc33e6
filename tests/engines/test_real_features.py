"""vLLM's features under our queue on a real vLLM on the CPU: LoRA, grammars, n > 1, sleep, drafts, remote KV, fusion.

Takes minutes, so it runs only on request: HEADWAY_VLLM_PYTHON names an interpreter that has vLLM, and
HEADWAY_REAL_ENGINE is 1. Four engine starts, one at a time.
"""

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
WANTED = os.environ.get("HEADWAY_REAL_ENGINE", "") == "1"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not WANTED, reason="HEADWAY_REAL_ENGINE is not 1: starting vLLM takes minutes and both cores"),
]
ENGINES = {
    "adapters": (
        "several_answers",
        "grammars",
        "late_grammar_keeps_its_place",
        "adapters_at_their_limit",
        "sleeps_while_requests_wait",
        "prefix_reset_with_everybody_running",
        "priorities_of_clients",
        "learned_state_outlives_the_engine",
        "offline_gives_way",
        "prompts_keep_to_their_budget",
        "urgent_ones_take_the_place_of_others",
    ),
    "n-gram": ("drafts_by_n_gram", "aborts_while_drafting"),
    "connector": ("remote_kv_keeps_its_place", "aborts_while_kv_comes"),
    "fusion": (
        "alike_prompts_share_blocks",
        "nothing_held_is_altered",
        "fused_preempted_and_resumed",
        "some_stay_exact",
        "a_fault_ends_fusion",
    ),
}


def environment(place: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (SOURCE, ROOT, place / "distributions")))
    one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # more spin when others compute too
    return {**os.environ, "PYTHONPATH": paths, "VLLM_CPU_KVCACHE_SPACE": "1", **one_thread, **more}


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


@cache
def findings(place: Path, engine: str) -> dict[str, Any]:
    env = environment(place, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    out = run([PYTHON, "-m", "tests.engines.real_features", str(place / "model"), str(place / engine), engine], env)
    return dict(json.loads(out.splitlines()[-1])["checks"])


def test_every_check_is_asked_for() -> None:
    sources = "".join(
        (HERE / f"real_{name}.py").read_text() for name in ("features", "drafts", "fusion", "offline", "limits")
    )
    written = re.findall(r"^def (\w+)\(engine: FeatureEngine\)", sources, re.MULTILINE)
    assert sorted(written) == sorted(name for checks in ENGINES.values() for name in checks)


@pytest.mark.parametrize(("engine", "check"), [(engine, check) for engine, names in ENGINES.items() for check in names])
def test_nothing_fails(engine: str, check: str, place: Path) -> None:
    assert findings(place, engine)[check]["failures"] == []
