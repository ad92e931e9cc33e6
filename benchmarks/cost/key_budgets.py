"""What budgets cost a request: CPU of its whole way through the dispatcher, with and without them, by number of keys.

    python -m benchmarks.cost.key_budgets
    python -m benchmarks.cost.key_budgets --json FILE

Requests of keys in turn arrive, are sent at once and end with a usage. "without" has the same tenants without budgets.
The variants take turns, so that what else the machine does falls on all. No socket is opened.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.request_body import read_body
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import ArrivedRequest, GatewayRequest, PromptSize, RequestMove
from headway.gateway.replicas.upstream_replica import Health, UpstreamReplica
from headway.gateway.settings import (
    BudgetSettings,
    HealthSettings,
    ReplicaSettings,
    Settings,
    TenantSettings,
)
from headway.gateway.wire.messages import HttpRequest

KEYS = (1, 100, 10_000)
REQUESTS = 200
REPEATS = 40
_LARGE = 10**9
BUDGETS = {
    "without": BudgetSettings(),
    "requests a minute": BudgetSettings(requests_per_minute=_LARGE),
    "all limits": BudgetSettings(
        requests_per_minute=_LARGE,
        requests_per_day=_LARGE,
        tokens_per_minute=_LARGE,
        tokens_per_day=_LARGE,
        concurrent_requests=_LARGE,
    ),
}
_PATH = "/v1/completions"
_CONTENT = b'{"model":"m","prompt":"hello","max_tokens":100}'


class Passing:
    """A request that is sent at once."""

    def __init__(self, request: GatewayRequest) -> None:
        self.request = request

    def dispatch(self, replica: UpstreamReplica) -> None:
        """It is sent."""
        self.request.move(RequestMove.SENT)

    def refuse(self, refusal: Refusal) -> None:
        """It must not come to that."""
        raise SystemExit(refusal.message)

    def check_silence(self, now: float) -> None:
        """Nobody looks."""

    def cut_off(self, refusal: Refusal) -> None:
        """It must not come to that."""
        raise SystemExit(refusal.message)

    def break_off(self) -> None:
        """It must not come to that."""
        raise SystemExit("an internal error")


def dispatcher(keys: int, budget: BudgetSettings) -> Dispatcher:
    """One with a replica that takes everything."""
    tenants = tuple(TenantSettings(f"tenant-{number}", key_env="X", budget=budget) for number in range(keys))
    settings = Settings(tenant=tenants)
    made = Dispatcher(settings, time.monotonic)
    chosen = ReplicaSettings(url="http://r:1", max_requests=10, prefill_tokens=_LARGE)
    replica = UpstreamReplica(chosen, HealthSettings(), time.monotonic)
    replica.state.health = Health.UP
    made.replace(settings, [replica], time.monotonic())
    return made


def relays(keys: int, first: int) -> list[Passing]:
    """Requests of the keys in turn."""
    endpoint = endpoint_of(_PATH)
    made = []
    for number in range(first, first + REQUESTS):
        tenant = f"tenant-{number * 7_919 % keys}"
        arrived = ArrivedRequest(
            number=number,
            request_id=b"id",
            http=HttpRequest(b"POST", _PATH.encode(), [], _CONTENT),
            endpoint=endpoint,
            body=read_body(_CONTENT, endpoint),
            body_bytes=len(_CONTENT),
            streams=False,
            model="m",
            tenant=tenant,
            payer=tenant,
            session=None,
            deadline=None,
            priority=0,
            hinted_output_tokens=None,
            arrived_at=time.monotonic(),
            traceparent=None,
        )
        made.append(Passing(GatewayRequest(arrived, PromptSize(20, 0, None))))
    return made


def seconds_a_request(made: Dispatcher, passing: list[Passing]) -> float:
    """CPU time of each one's way in and out."""
    usage = Usage(20, 80, 0)
    began = time.process_time()
    for one in passing:
        made.announce(one)
        made.arrive(one)
        one.request.relayed.status = 200
        one.request.relayed.usage = usage
        made.end(one.request, Outcome.COMPLETED)
    return (time.process_time() - began) / len(passing)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gc.disable()  # a collection would fall on one of the variants by chance
    found: dict[str, dict[str, list[float]]] = {}
    for keys in KEYS:
        variants = {name: dispatcher(keys, budget) for name, budget in BUDGETS.items()}
        here = found[f"{keys:,} keys"] = {name: [] for name in variants}
        for repeat in range(REPEATS):
            for name, made in variants.items():
                here[name].append(seconds_a_request(made, relays(keys, 1 + repeat * REQUESTS)) * 1e6)
        without = here["without"]
        for name, values in here.items():
            more = statistics.median([value - base for value, base in zip(values, without, strict=True)])
            line = f"{keys:>6,} keys, {name:>17}: {min(values):5.1f} / {statistics.median(values):5.1f} us"
            print(line if name == "without" else f"{line}, {min(values) - min(without):4.1f} / {more:4.1f} us more")
    print("least / median of", REPEATS)
    if options.json is not None:
        options.json.write_text(json.dumps({"cpu_us": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
