"""What routing costs the gateway: the hashes of a prompt's prefixes, and one choice under each policy.

    python -m benchmarks.cost.routing [--replicas 8 64] [--rounds 2000]

Hashes: processor time of a whole prompt, and of the longest step of a large one, between two of which every other
connection has its turn. Choices: `choose` and `routed` for a prompt of 100 KB, half of which one replica holds.
Processor time of the one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from statistics import median

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.gateway.openai.prompt_prefixes import prefix_bounds, prefix_hashes_in_steps
from headway.gateway.replicas.in_flight import InFlight
from headway.policies.catalog import ROUTING, build
from headway.policies.contracts import DispatchListener

SIZES = (1 << 10, 1 << 13, 1 << 15, 1 << 17, 1 << 20, 1 << 24, 1 << 26)
PROMPT_BYTES = 100_000
PROMPT_TOKENS = 25_000


def hashing(rounds: int) -> Iterator[tuple[int, int, float, float]]:
    """(bytes, hashes, seconds of the whole, seconds of its longest step), each the median of some rounds."""
    for size in SIZES:
        prompt = bytes(range(256)) * (size // 256)
        wholes, longest = [], []
        for _ in range(max(3, min(rounds, (1 << 25) // size))):
            steps, last = [], time.thread_time()
            for _hashes in prefix_hashes_in_steps("model", prompt):
                now = time.thread_time()
                steps.append(now - last)
                last = now
            wholes.append(sum(steps))
            longest.append(max(steps))
        yield size, len(prefix_bounds(size)), median(wholes), median(longest)


def choices(replicas: int, rounds: int) -> Iterator[tuple[str, float]]:
    """(policy, seconds of one choice)."""
    prefix = tuple(range(len(prefix_bounds(PROMPT_BYTES))))
    tokens = [PROMPT_TOKENS * bound // PROMPT_BYTES for bound in prefix_bounds(PROMPT_BYTES)]
    ledgers = [InFlight(f"replica-{number}") for number in range(replicas)]
    for number, ledger in enumerate(ledgers):
        ledger.costs = ServiceCosts(1e-4 * (1 + number % 3), 0.01 * (1 + number % 3))
        ledger.requests, ledger.requests_max, ledger.prefill_tokens = number % 4, 64, 100 * (number % 5)
        half = len(prefix) // 2 if number == replicas - 1 else 1
        ledger.confirmed.answered(prefix[:half], tokens[:half], 1, 0, 1.0)
    requests = [Request(number, 0.0, PROMPT_TOKENS, session=f"s{number}", adapter="a") for number in range(rounds)]
    for request in requests:
        request.estimate = PointEstimate(200, "benchmark")
    for name in ROUTING:
        policy = build("routing", name, costs=ServiceCosts(1e-4, 0.01), seed=0)
        began = time.thread_time()
        for request in requests:
            chosen = policy.choose(request, prefix, ledgers, 1.0)
            if chosen is not None and isinstance(policy, DispatchListener):
                policy.routed(request, prefix, chosen)
        yield name, (time.thread_time() - began) / rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.routing")
    parser.add_argument("--replicas", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rounds", type=int, default=2_000)
    chosen = parser.parse_args(arguments)
    print("| prompt, bytes | hashes | ms | longest step, ms |\n|---|---|---|---|")
    for size, hashes, whole, longest in hashing(chosen.rounds):
        print(f"| {size:,} | {hashes} | {1e3 * whole:.3f} | {1e3 * longest:.3f} |")
    head = " | ".join(f"us at {replicas} replicas" for replicas in chosen.replicas)
    print(f"\n| routing | {head} |\n|---|{'---|' * len(chosen.replicas)}")
    columns = [dict(choices(replicas, chosen.rounds)) for replicas in chosen.replicas]
    for name in ROUTING:
        print(f"| {name} | {' | '.join(f'{1e6 * column[name]:.1f}' for column in columns)} |")


if __name__ == "__main__":
    main()
