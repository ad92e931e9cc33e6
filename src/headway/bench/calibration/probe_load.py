"""Sends a designed load to a live server, and records how the server handled it.

Closed loops of 1, 2, 4, ... clients, up to one and a half times the seats, in two rounds of mixed order, so that early
and late requests see every level; lengths drawn log-uniformly, so that fixed costs, tokens, context and prompt
attention all weigh somewhere. A trace can also be replayed at its own times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np

from headway.bench.calibration.openai_stream import Server
from headway.bench.load_test.stream_client import Served
from headway.bench.metrics.recording import Recording
from headway.simulator.rules import EngineRules
from headway.simulator.trace import Trace

Plan = tuple[int, int]
"""(prompt tokens, output tokens) of a request to send."""

_PROMPT_TOKENS = (8, 4_096)
_OUTPUT_TOKENS = (8, 96)
_TOKEN_IDS = (100, 1_000)  # words of any vocabulary; which ones does not matter
_WARM_UP = ((200, 8), (16, 8), (1_000, 8))


def measure(url: str, rules: EngineRules, *, requests: int, seed: int, model: str | None = None) -> Recording:
    """Send the designed load to the server at `url`, and record the times.

    Args:
        url: base address.
        rules: limits of the server's engine; no request is longer than its context.
        requests: how many to send.
        seed: of lengths and of the prompts' words.
        model: its name there; the first that the server lists where None.

    Raises:
        UserMistake: the server does not answer as an OpenAI-compatible one.
    """
    generator = np.random.default_rng(seed)
    plans = designed_lengths(rules, requests, generator)
    return asyncio.run(_measure(Server(url), model, plans, levels(rules.max_num_seqs), generator, url))


def designed_lengths(rules: EngineRules, requests: int, generator: np.random.Generator) -> list[Plan]:
    """Log-uniform prompts and outputs within the engine's context."""
    longest = max(_PROMPT_TOKENS[0] + 1, min(_PROMPT_TOKENS[1], rules.context_tokens - _OUTPUT_TOKENS[1]))
    prompts = np.exp(generator.uniform(np.log(_PROMPT_TOKENS[0]), np.log(longest), requests)).astype(int)
    outputs = np.exp(generator.uniform(np.log(_OUTPUT_TOKENS[0]), np.log(_OUTPUT_TOKENS[1]), requests)).astype(int)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


def levels(seats: int) -> list[int]:
    """Numbers of clients, in the order in which they take turns: each twice, light and heavy in alternation."""
    rising = [1]
    while rising[-1] < min(seats, 64):
        rising.append(min(2 * rising[-1], seats, 64))
    rising.append(rising[-1] + max(1, rising[-1] // 2))
    light, heavy = rising[: len(rising) // 2], rising[len(rising) // 2 :]
    mixed = [level for pair in zip(light, heavy, strict=False) for level in pair] + heavy[len(light) :]
    return mixed + mixed[::-1]


async def _measure(
    server: Server,
    model: str | None,
    plans: Sequence[Plan],
    clients: Sequence[int],
    generator: np.random.Generator,
    label: str,
) -> Recording:
    name = model or await server.first_model()
    send = _sender(server, name, generator)
    for plan in _WARM_UP:
        await send(plan, None)
    answers: list[Served] = []
    # Levels take requests in proportion to their clients, so that none is over before the batch is full.
    shares = np.cumsum(np.sqrt(np.array(clients, float)))
    cuts = [0, *np.rint(shares / shares[-1] * len(plans)).astype(int).tolist()]
    for level, start, stop in zip(clients, cuts, cuts[1:], strict=False):
        left = iter(plans[start:stop])
        results = await asyncio.gather(*(_client(send, left) for _ in range(level)))
        answers += [answer for of_client in results for answer in of_client]
    return recorded(answers, label)


async def _client(send: Callable[[Plan, int | None], Awaitable[Served]], plans: Iterator[Plan]) -> list[Served]:
    return [await send(plan, None) for plan in plans]


async def replay_on(server: Server, model: str, trace: Trace, seed: int, label: str) -> Recording:
    """Send a trace's requests at its own times, with its priorities where it has some."""
    send = _sender(server, model, np.random.default_rng(seed))
    began = time.perf_counter() + 0.1
    lengths = list(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))

    async def send_row(row: int) -> Served:
        await asyncio.sleep(max(0.0, began + float(trace.arrived_seconds[row]) - time.perf_counter()))
        return await send(lengths[row], None if trace.priority is None else int(trace.priority[row]))

    return recorded(await asyncio.gather(*(send_row(row) for row in range(len(trace)))), label)


def _sender(
    server: Server, model: str, generator: np.random.Generator
) -> Callable[[Plan, int | None], Awaitable[Served]]:
    def send(plan: Plan, priority: int | None) -> Awaitable[Served]:
        words = generator.integers(*_TOKEN_IDS, plan[0]).tolist()
        return server.complete(model, words, plan[1], priority)

    return send


def recorded(answers: Sequence[Served], label: str) -> Recording:
    """Answers as a recording, in the order in which their requests were sent."""
    rows = sorted(answers, key=lambda answer: answer.sent_at)
    sent = np.array([answer.sent_at for answer in rows])
    output = np.array([answer.output_tokens for answer in rows], np.int64)
    trace = Trace(
        name=label,
        arrived_seconds=sent - sent[0],
        prompt_tokens=np.array([answer.prompt_tokens for answer in rows], np.int64),
        output_tokens=output,
        max_output_tokens=output,
    )
    first, last = (np.array([getattr(answer, name) for answer in rows]) for name in ("first_token_at", "last_token_at"))
    return Recording(trace, first - sent, last - sent, label)
