"""Mixes of clients, each with its own rate, burstiness and lengths, as ServeGen measured production traffic.

Source: Xiang et al., ServeGen, arXiv 2505.09999: traffic is a sum of few heavy and many light clients whose gaps are
Gamma or Weibull and whose lengths keep their own shape. Prompt and output lengths are independent within a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.workloads.workload import draw_arrivals, draw_from_quantiles, from_zero, stream, whole_tokens
from headway.simulator.trace import Seconds, Tokens, Trace

Quantiles: TypeAlias = tuple[float, float, float, float]  # tokens at 1, 50, 90 and 99 %


@dataclass(frozen=True, slots=True)
class Client:
    """One tenant of a mix.

    Attributes:
        name: the tenant.
        share: of the requests; shares of a mix are brought to a sum of 1.
        cv: coefficient of variation of its gaps.
        prompts: quantiles of its prompt lengths.
        outputs: quantiles of its output lengths.
        family: distribution of its gaps.
        deadline_seconds: wanted time to first token; None if none is.
    """

    name: str
    share: float
    cv: float
    prompts: Quantiles
    outputs: Quantiles
    family: Literal["gamma", "weibull"] = "gamma"
    deadline_seconds: float | None = None


def mix_clients(name: str, clients: Sequence[Client], rate: float, requests: int, seed: int) -> Trace:
    """The first `requests` requests of the clients together, `rate` a second on average; tenants as named."""
    shares = np.array([client.share for client in clients])
    rates = rate * shares / shares.sum()
    times, senders = _merged_arrivals(name, clients, rates, requests, seed)
    prompts, outputs = np.empty(requests), np.empty(requests)
    for index, client in enumerate(clients):
        mine = senders == index
        count = int(mine.sum())
        prompts[mine] = _lengths(stream(seed, name, client.name, "prompts"), client.prompts, count)
        outputs[mine] = _lengths(stream(seed, name, client.name, "outputs"), client.outputs, count)
    deadlines = np.array([client.deadline_seconds for client in clients], dtype=np.float64)  # None becomes NaN
    present, tenant = np.unique(senders, return_inverse=True)  # a light client may have sent nothing yet
    return Trace(
        name=name,
        arrived_seconds=from_zero(times),
        prompt_tokens=whole_tokens(prompts),
        output_tokens=whole_tokens(outputs),
        tenant=tenant.astype(np.int64),
        tenants=tuple(clients[index].name for index in present),
        deadline_seconds=None if np.isnan(deadlines).all() else deadlines[senders],
    )


def _merged_arrivals(
    name: str, clients: Sequence[Client], rates: Seconds, requests: int, seed: int
) -> tuple[Seconds, Tokens]:
    """Times and senders of the first `requests` arrivals: the horizon is doubled until it holds enough."""
    horizon = 1.2 * requests / float(rates.sum())
    while True:
        by_client = [
            _arrivals_until(stream(seed, name, client.name, "arrivals"), client, rate, horizon)
            for client, rate in zip(clients, rates.tolist(), strict=True)
        ]
        times = np.concatenate(by_client)
        if len(times) >= requests:
            senders = np.repeat(np.arange(len(clients)), [len(part) for part in by_client])
            order = np.argsort(times, kind="stable")[:requests]
            return times[order], senders[order]
        horizon *= 2


def _arrivals_until(rng: np.random.Generator, client: Client, rate: float, horizon: float) -> Seconds:
    """One client's arrivals up to the horizon, by batches as large as the horizon is likely to need."""
    batch = max(16, round(rate * horizon))
    times = np.empty(0)
    while not len(times) or times[-1] <= horizon:
        begin = times[-1] if len(times) else 0.0
        times = np.concatenate((times, begin + draw_arrivals(rng, rate, client.cv, batch, client.family)))
    return times[times <= horizon]


def _lengths(rng: np.random.Generator, quantiles: Quantiles, count: int) -> npt.NDArray[np.float64]:
    p1, p50, p90, p99 = quantiles
    return draw_from_quantiles(rng, {0: p1, 50: p50, 90: p90, 99: p99, 100: 1.25 * p99}, count)
