"""What a request of a simulated fleet costs, beside one replica in the same run.

    python -m benchmarks.cost.fleet [--repeats 3] [--million]

Each replica gets the traffic that `benchmarks.cost.simulator` gives to one: the same lengths, and arrivals so many
times as dense as there are replicas. Processor time of the simulation alone; every case is a process of its own and the
cases take turns. `--million` simulates a million requests on 64 replicas and tells the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from benchmarks.cost.simulator import RATES, traffic

REQUESTS = 2_000
"""Of each replica."""
ONE = "one replica"
CASES: dict[str, tuple[int, str, str]] = {
    ONE: (1, "", ""),
    "1, round-robin, pushed": (1, "round-robin", "replicas"),
    "8, round-robin, pushed": (8, "round-robin", "replicas"),
    "8, least-work, pushed": (8, "least-work", "replicas"),
    "8, least-work, one queue in front": (8, "least-work", "gateway"),
    "64, round-robin, pushed": (64, "round-robin", "replicas"),
    "64, power-of-two, pushed": (64, "power-of-two", "replicas"),
    "64, least-work, pushed": (64, "least-work", "replicas"),
}


def cost(case: str, rate: float, requests: int) -> dict[str, float]:
    from headway.policies.catalog import build
    from headway.scheduling.bundle import bundle
    from headway.simulator.fleet import simulate_fleet
    from headway.simulator.fleet_members import FleetMember
    from headway.simulator.fleet_router import FleetPolicies, Routing
    from headway.simulator.replica import replica
    from headway.simulator.skipping import simulate

    count, routing, queue = CASES[case]
    machine = replica("a100", "llama-3.1-8b")
    rules = replace(machine.rules, kv_blocks=26_000, max_num_batched_tokens=512, max_num_seqs=128)
    requests *= count
    trace, costs = traffic(requests, rate * count), machine.costs
    policies = bundle(costs=costs, seed=0)
    began = time.process_time()
    if case == ONE:
        day = simulate(trace, rules, machine.step_time, policies)
    else:
        members = [FleetMember(f"replica-{number}", rules, machine.step_time, costs) for number in range(count)]
        chosen = Routing(build("routing", routing, costs=costs, seed=0), queue)
        of_each = FleetPolicies(policies, lambda own: bundle(costs=own, seed=0))
        day = simulate_fleet(trace, members, chosen, of_each).day
    seconds = time.process_time() - began
    assert (day.ended_ps >= 0).all()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"microseconds": seconds / requests * 1e6, "steps": day.steps / requests, "memory_mb": memory}


def measured(case: str, rate: float, requests: int) -> dict[str, float]:
    """One case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost.fleet", "--case", case, "--rate", str(rate)]
    done = subprocess.run([*command, "--requests", str(requests)], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--million", action="store_true", help="a million requests on 64 replicas, and nothing else")
    options.add_argument("--requests", type=int, default=REQUESTS, help="of each replica")
    options.add_argument("--case", help=argparse.SUPPRESS)
    options.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.case:
        print(json.dumps(cost(chosen.case, chosen.rate, chosen.requests)))
        return
    if chosen.million:
        run = measured("64, round-robin, pushed", RATES[-1], 1_000_000 // 64)
        print(f"A million requests on 64 replicas: {run['microseconds']:.0f} µs a request, {run['memory_mb']:.0f} MB")
        return
    for rate in RATES:
        found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for _ in range(chosen.repeats):
            for case in CASES:
                found[case].append(measured(case, rate, chosen.requests))
        base = statistics.median(run["microseconds"] for run in found[ONE])
        print(f"\n{rate} requests/s and replica\n\n| case | µs a request, median | ÷ one replica | steps | peak MB |")
        print("|---|---|---|---|---|")
        for case, runs in found.items():
            middle = statistics.median(run["microseconds"] for run in runs)
            memory = max(run["memory_mb"] for run in runs)
            print(f"| {case} | {middle:.0f} | {middle / base:.2f} | {runs[0]['steps']:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
