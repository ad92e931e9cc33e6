"""Discrete model of serving, as in the papers: a running request makes one token a step, and only memory is scarce.

Time goes in steps. A request of prompt s and output o that is started at time k holds s + j tokens of memory during its
j-th step, which ends at k + j; it is done at k + o and gives everything back. Prefill takes no time, nothing is
preempted (what a policy may do instead is kill: all progress is lost). Source: arXiv 2606.22327, section 2; the same
model in arXiv 2502.07115, 2508.06133 and 2607.09248. It is not the simulator, which `bounds.lower_bounds` is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class DiscreteRequest(NamedTuple):
    """One request: prompt and output tokens, both ≥ 1 (a prompt may be 0), and the step at whose start it is there."""

    prompt: int
    output: int
    arrived: int = 0

    @property
    def peak(self) -> int:
        """Most memory it ever holds."""
        return self.prompt + self.output

    @property
    def volume(self) -> int:
        """Memory held, summed over its steps: Σ (s + j) over j = 1 … o."""
        return self.prompt * self.output + (self.output**2 + self.output) // 2


@dataclass(frozen=True, slots=True)
class Instance:
    """Requests and memory in tokens; a request is named by its place.

    Raises:
        ValueError: a request is without output, or alone too large for the memory.
    """

    requests: tuple[DiscreteRequest, ...]
    memory: int

    def __post_init__(self) -> None:
        for place, request in enumerate(self.requests):
            if request.prompt < 0 or request.output < 1 or request.arrived < 0:
                raise ValueError(f"request {place} has a negative length or no output: {request}")
            if request.peak > self.memory:
                raise ValueError(f"request {place} needs {request.peak} tokens of memory, there are {self.memory}")

    @property
    def alpha(self) -> float:
        """Largest peak as a share of memory."""
        return max((request.peak for request in self.requests), default=0) / self.memory


class Attempt(NamedTuple):
    """One stay of a request in memory: from `started` on, for `steps` steps; killed unless these are its output."""

    place: int
    started: int
    steps: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of a schedule.

    Attributes:
        completions: by place.
        total_latency: Σ (completion − arrival).
        total_completion: Σ completion, the objective of arXiv 2607.09248.
        peak_memory: most tokens held in any step.
        killed: attempts that were given up.
    """

    completions: tuple[int, ...]
    total_latency: int
    total_completion: int
    peak_memory: int
    killed: int


class Active(NamedTuple):
    """A running request as a policy sees it: its place, its prompt, the tokens made so far."""

    place: int
    prompt: int
    produced: int

    @property
    def held(self) -> int:
        """Memory it held in its last step."""
        return self.prompt + self.produced


class Choice(NamedTuple):
    """Decision of a policy at one step: places to kill, then places to start."""

    kill: Sequence[int] = ()
    start: Sequence[int] = ()


class DiscretePolicy(Protocol):
    """Decides at the start of every step. What it may know of output lengths is its own affair: see each policy."""

    def choose(self, waiting: Sequence[int], active: Sequence[Active]) -> Choice:
        """Which requests are killed and which are started now.

        Args:
            waiting: places of the requests that have arrived and do not run, in order of arrival.
            active: the running requests, in order of their starts.
        """


def serve(instance: Instance, policy: DiscretePolicy) -> list[Attempt]:
    """Run a policy step by step; every request ends with one attempt that made all its tokens.

    Raises:
        ValueError: the policy let memory overflow, or leaves an empty replica idle although a request waits.
    """
    requests = instance.requests
    coming = sorted(range(len(requests)), key=lambda place: (requests[place].arrived, place))
    waiting: list[int] = []
    running: dict[int, int] = {}  # place -> when it started
    attempts: list[Attempt] = []
    now = 0
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, requests[coming[0]].arrived)
        while coming and requests[coming[0]].arrived <= now:
            waiting.append(coming.pop(0))
        if waiting or running:
            active = [Active(place, requests[place].prompt, now - began) for place, began in running.items()]
            choice = policy.choose(waiting, active)
            attempts += [Attempt(place, running[place], now - running.pop(place)) for place in choice.kill]
            waiting = sorted({*waiting, *choice.kill}, key=lambda place: (requests[place].arrived, place))
            for place in choice.start:
                waiting.remove(place)
                running[place] = now
            if not running and not coming:
                raise ValueError(f"nothing runs at step {now} although {len(waiting)} wait")
        now += 1
        held = sum(requests[place].prompt + now - began for place, began in running.items())
        if held > instance.memory:
            raise ValueError(f"step {now} holds {held} tokens, there is memory for {instance.memory}")
        done = [place for place, began in running.items() if now - began == requests[place].output]
        attempts += [Attempt(place, running.pop(place), requests[place].output) for place in done]
    return attempts


def replay(instance: Instance, attempts: Iterable[Attempt]) -> Replay:
    """Check a schedule against every rule of the model, step by step, and add up what it costs.

    Raises:
        ValueError: a request starts before it has come, overlaps itself, runs longer than its output, goes on after its
            end or never ends; or a step holds more than the memory.
    """
    held: dict[int, int] = {}
    completions: dict[int, int] = {}
    free_from = [request.arrived for request in instance.requests]
    killed = 0
    for place, started, steps in sorted(attempts, key=lambda attempt: attempt.started):
        request = instance.requests[place]
        if started < free_from[place] or place in completions:
            raise ValueError(f"request {place} starts at {started}, too early or once too often")
        if not 0 <= steps <= request.output:
            raise ValueError(f"request {place} runs {steps} steps and has {request.output} tokens to make")
        free_from[place] = started + steps
        for step in range(1, steps + 1):
            held[started + step] = held.get(started + step, 0) + request.prompt + step
        if steps == request.output:
            completions[place] = started + steps
        else:
            killed += 1
    missing = [place for place in range(len(instance.requests)) if place not in completions]
    if missing:
        raise ValueError(f"requests {missing} never end")
    over = next((step for step in sorted(held) if held[step] > instance.memory), None)
    if over is not None:
        raise ValueError(f"step {over} holds {held[over]} tokens, there is memory for {instance.memory}")
    ends = tuple(completions[place] for place in range(len(instance.requests)))
    return Replay(
        completions=ends,
        total_latency=sum(ends) - sum(request.arrived for request in instance.requests),
        total_completion=sum(ends),
        peak_memory=max(held.values(), default=0),
        killed=killed,
    )


def peak_of(running: Iterable[tuple[int, int]]) -> int:
    """Most memory that requests of (held now, tokens still to make) will hold if no other request joins.

    Use can only peak when a request ends: with the requests by falling remainder, max over m of
    r_m · m + Σ_{j ≤ m} c_j.
    """
    most = held = 0
    falling = sorted(((remaining, now) for now, remaining in running), reverse=True)
    for count, (remaining, now) in enumerate(falling, 1):
        held += now
        most = max(most, remaining * count + held)
    return most


def lower_bound(instance: Instance) -> int:
    """Lower bound of every schedule's total latency: outputs, or the area bound with shortest volume first.

    Σ C ≥ (1/M) Σ_j Σ_{i ≤ j} vol_(i), volumes rising, and Σ C ≥ Σ (a + o). Source: arXiv 2606.22327, Prop. 3.1 for a
    burst; with arrivals the area of the first j completions is still at most M times the j-th (arXiv 2607.09248,
    Lemma 17).
    """
    volumes = sorted(request.volume for request in instance.requests)
    area = done = 0
    for volume in volumes:
        done += volume
        area += -(-done // instance.memory)  # completions are whole steps
    arrivals = sum(request.arrived for request in instance.requests)
    return max(area - arrivals, sum(request.output for request in instance.requests))
