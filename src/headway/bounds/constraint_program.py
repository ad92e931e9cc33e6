"""Constraint program for the same optimum: CP-SAT with intervals and a cumulative resource.

A check on the integer program: nothing is shared with it but the instance. A request's step j is an interval of one
step that uses s + j of the memory, bound to the request's start (no interval is optional: every request runs once).

`python -m headway.bounds.constraint_program` reads an instance as JSON from stdin and writes the answer;
`optimum_by_constraints` runs it so, in a process of its own, because OR-Tools and highspy each bring a library called
libhighs and cannot be loaded side by side (seen with 9.15 and 1.15).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from headway.bounds.discrete import Instance


def optimum_by_constraints(instance: Instance, *, time_limit_seconds: float = 60.0) -> tuple[int, int, tuple[int, ...]]:
    """(total latency, bound on it, starts): the first two are equal when the optimum is proven.

    Raises:
        ImportError: ortools is not installed (`pip install headway[opt]`).
        RuntimeError: no schedule was found in time.
    """
    question = {
        "requests": [list(request) for request in instance.requests],
        "memory": instance.memory,
        "time_limit_seconds": time_limit_seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "headway.bounds.constraint_program"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    if "ModuleNotFoundError" in done.stderr:
        raise ImportError("ortools is not installed: pip install headway[opt]")
    if done.returncode:
        raise RuntimeError(f"CP-SAT gave no schedule: {done.stderr.strip() or 'time is up'}")
    answer = json.loads(done.stdout)
    return answer["total_latency"], answer["bound"], tuple(answer["starts"])


def _solve(requests: list[tuple[int, int, int]], memory: int, time_limit_seconds: float) -> dict[str, Any]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    horizon = max(arrived for _, _, arrived in requests) + sum(output for _, output, _ in requests)
    starts, steps, demands = [], [], []
    for place, (prompt, output, arrived) in enumerate(requests):
        start = model.new_int_var(arrived, horizon - output, f"start of {place}")
        starts.append(start)
        for step in range(1, output + 1):
            steps.append(model.new_fixed_size_interval_var(start + step - 1, 1, f"{place}, step {step}"))
            demands.append(prompt + step)
    model.add_cumulative(steps, demands, memory)
    model.minimize(sum(starts))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_seconds
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise SystemExit(1)
    constant = sum(output - arrived for _, output, arrived in requests)
    return {
        "total_latency": round(solver.objective_value) + constant,
        "bound": round(solver.best_objective_bound) + constant,
        "starts": [solver.value(start) for start in starts],
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    requests = [tuple(request) for request in asked["requests"]]
    json.dump(_solve(requests, asked["memory"], asked["time_limit_seconds"]), sys.stdout)
