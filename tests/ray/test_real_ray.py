"""The queue on a real Ray Serve: order across routers, refusal over HTTP, faults of replicas, clients and the actor.

HEADWAY_RAY_PYTHON names an interpreter that has Ray (extra `ray`). One small cluster serves all checks, some 60 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("HEADWAY_RAY_PYTHON", "")
LONGEST_SECONDS = 900
CHECKS = (
    "order_across_proxy_and_handle",
    "refusal_over_http",
    "refusal_behind_an_ingress",
    "deadlines_and_keys",
    "client_gone_while_queued",
    "streams",
    "replica_killed",
    "actor_killed",
    "scaled_up_and_down",
    "deployed_again",
    "unused_actor_ends",
    "ranks_where_the_method_is_missing",
)

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="HEADWAY_RAY_PYTHON does not name a Python interpreter that has Ray"),
]


def environment() -> dict[str, str]:
    """Ray on loopback, without reports to its makers, a token in the home folder, or a look for newer versions."""
    paths = os.pathsep.join(map(str, (ROOT / "src", ROOT, HERE)))
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | quiet


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong, by check."""
    place = tmp_path_factory.mktemp("ray")
    command = [PYTHON, str(HERE / "ray_checks.py"), str(place)]
    log, told = place / "log", place / "told"
    with log.open("w") as errors, told.open("w") as lines:
        running = subprocess.Popen(command, env=environment(), stdout=lines, stderr=errors, start_new_session=True)
        try:
            running.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # and Ray ends with it
    found = [json.loads(line) for line in told.read_text().splitlines() if line.startswith('{"check"')]
    assert found, log.read_text()[-3_000:]
    return {one["check"]: one["wrong"] for one in found}


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_real_ray(check: str, results: dict[str, str]) -> None:
    assert check in results, f"it was not run; those that were: {list(results)}"
    assert results[check] == "", results[check]
