"""Offline tuner: a trace replayed once a trial, its first part to search on, the rest to check on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from headway.domain.costs import ServiceCosts
from headway.policies.catalog import Kind, find
from headway.policies.contracts import OrderingPolicy, Stateful
from headway.policies.lanes.partition import Span
from headway.policies.options import constructor_keywords
from headway.scheduling.bundle import bundle
from headway.scheduling.outside_answers import blamed, outside_checked
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, StepTime
from headway.simulator.trace import Trace
from headway.tuning.optimiser import Optimiser
from headway.tuning.rewards import Floats, Objective, plain_reward, published_reward
from headway.tuning.search import SearchBox
from headway.tuning.state_file import Tried

RewardName: TypeAlias = Literal["plain", "published"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A tuning problem: the policy, the traffic and the replica.

    Attributes:
        trace: the traffic, as it is to be replayed.
        rules: of the replica.
        step_time: of the replica.
        costs: of the replica, for policies.
        policy: name of the ordering.
        others: the bundle's other policies by kind, those of `bundle` where one is left out.
        fixed: options of the ordering that are not searched.
        reward: which.
        objective: of the plain reward.
        seed: of everything random.
    """

    trace: Trace
    rules: EngineRules
    step_time: StepTime
    costs: ServiceCosts
    policy: str
    others: Mapping[str, str]
    fixed: Mapping[str, object]
    reward: RewardName = "plain"
    objective: Objective = field(default_factory=Objective)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """Result of a search.

    Attributes:
        best: values to use.
        tried: every trial, the first one at the defaults.
        held_out: reward on the part of the trace that was not searched on, by "best", "defaults" and "fcfs".
        policy: the ordering as it stood at the end of the best trial's day, with what it has learned.
    """

    best: Mapping[str, float]
    tried: list[Tried]
    held_out: Mapping[str, float]
    policy: OrderingPolicy


def tune(
    problem: Problem,
    box: SearchBox,
    *,
    trials: int,
    known: list[Tried] | None = None,
    harm: float = 1.25,
    on_trial: Callable[[], None] = lambda: None,
) -> Tuned:
    """Search for `trials` trials on the first 70 % of the trace, and judge the best on the rest.

    The first trial is at the policy's defaults, so the best is never worse than they on that part. A trial
    whose p99 TTFT is more than `harm` times the worse of FCFS's and the defaults' is fenced off and never called
    best. `known` are trials of an earlier search on the same problem.

    Raises:
        ValueError: the trace is too short to be cut in two, the reward does not suit the policy, or a policy of another
            package raised or answered without sense.
    """
    search, check = _cut(problem.trace)
    optimiser = Optimiser(box, seed=problem.seed + len(known or []))  # what goes on draws other points than before
    defaults = default_values(problem, box)
    usual = [_day(problem, search, "fcfs", {})[0], _day(problem, search, problem.policy, defaults)[0]]
    limit = harm * max(_p99(_ttft(search, day)) for day in usual)
    tried = list(known or [])
    for trial in tried:
        optimiser.recall(trial.values, trial.reward - trial.fenced)
        if trial.fenced:
            optimiser.fences.add(box.shares(trial.values))
    if not tried:
        optimiser.suggest(defaults)
    for _ in range(trials):
        number, point = optimiser.ask()
        values = defaults if not tried else box.values(point)
        result = _try(problem, search, values, limit)
        tried.append(result)
        if result.fenced:
            optimiser.fences.add(point)
        optimiser.tell(number, result.reward - result.fenced)  # so that the search, too, learns to stay away
        on_trial()
    safe = [trial for trial in tried if not trial.fenced] or tried[:1]
    best = max(safe, key=lambda trial: trial.reward).values
    held_out = {
        "best": reward_of(problem, check, problem.policy, best),
        "defaults": reward_of(problem, check, problem.policy, defaults),
        "fcfs": reward_of(replace(problem, reward="plain"), check, "fcfs", {}),
    }
    return Tuned(best, tried, held_out, _day(problem, search, problem.policy, best)[1].ordering)


def default_values(problem: Problem, box: SearchBox) -> dict[str, float]:
    """Start values of the searched options: `fixed` ones, else the policy's defaults."""
    keywords = constructor_keywords(find("ordering", problem.policy))
    values: dict[str, float] = {}
    for name in box.names():
        default = problem.fixed.get(name, keywords[name].default)
        values[name] = cast(float, default)
    return values


def reward_of(problem: Problem, trace: Trace, policy: str, values: Mapping[str, float]) -> float:
    """The reward of one policy with these values over a trace."""
    outcome, policies = _day(problem, trace, policy, values)
    return _reward(problem, trace, outcome, policies.ordering)


def _try(problem: Problem, trace: Trace, values: Mapping[str, float], limit: float) -> Tried:
    outcome, policies = _day(problem, trace, problem.policy, values)
    p99 = _p99(_ttft(trace, outcome))
    fenced = p99 > max(limit, problem.objective.ttft_seconds)
    return Tried(values, _reward(problem, trace, outcome, policies.ordering), p99, fenced)


def _reward(problem: Problem, trace: Trace, outcome: DayOutcome, ordering: OrderingPolicy) -> float:
    ttft = _ttft(trace, outcome)
    if problem.reward == "plain":
        weights = None if trace.priority is None else np.exp2(-trace.priority.astype(np.float64))
        return plain_reward(ttft, problem.objective, weights)
    if not isinstance(ordering, Stateful):
        raise ValueError(f"the published reward is about learned lanes and {problem.policy} has none: use plain")
    learned: Mapping[str, Any] = ordering.state()
    waits = np.where(outcome.admitted_ps == NEVER, np.nan, (outcome.admitted_ps - outcome.arrived_ps) / PS_PER_SECOND)
    lanes_max = constructor_keywords(find("ordering", problem.policy))["lanes_max"].default
    lanes_max = int(cast(int, problem.fixed.get("lanes_max", lanes_max)))
    lanes = [Span(*lane) for lane in learned["lanes"]]
    return published_reward(learned["window"], lanes, lanes_max, float(np.nanmean(waits)))


def _day(problem: Problem, trace: Trace, policy: str, values: Mapping[str, float]) -> tuple[DayOutcome, Policies]:
    truth = trace.output_tokens.tolist()
    named: dict[Kind, str] = {
        "ordering": policy,
        "admission": problem.others.get("admission", "greedy"),
        "preemption": problem.others.get("preemption", "latest-admitted"),
        "prediction": problem.others.get("prediction", "running-mean"),
    }
    options = {**problem.fixed, **values} if policy == problem.policy else {}
    names: dict[str, Any] = {str(kind): name for kind, name in named.items()}
    policies = bundle(
        **names,
        options={"ordering": options},
        costs=problem.costs,
        seed=problem.seed,
        truth=truth.__getitem__,
    )
    try:
        outcome = simulate(trace, problem.rules, problem.step_time, outside_checked(policies, named))
    except Exception as failure:
        sentence = blamed(named, failure)
        if sentence is None:
            raise
        raise ValueError(sentence) from failure
    return outcome, policies


def _ttft(trace: Trace, outcome: DayOutcome) -> Floats:
    """Seconds; infinite for a request that never got its first token although it was not refused."""
    ttft = np.where(
        outcome.first_token_ps == NEVER, np.inf, (outcome.first_token_ps - outcome.arrived_ps) / PS_PER_SECOND
    )
    kept = np.ones(len(trace), bool)
    kept[list(outcome.refused)] = False
    return cast(Floats, ttft[kept])


def _p99(ttft: Floats) -> float:
    return float(np.quantile(ttft, 0.99, method="lower")) if len(ttft) else 0.0


def _cut(trace: Trace) -> tuple[Trace, Trace]:
    """The first 70 % of the requests and the rest, each from time 0; sessions are replayed at their recorded times."""
    at = int(0.7 * len(trace))
    if at < 50 or len(trace) - at < 20:
        raise ValueError(f"{trace.name} has {len(trace)} requests; tuning needs at least 72, to search and to check")
    return _rows(trace, slice(0, at)), _rows(trace, slice(at, len(trace)))


def _rows(trace: Trace, rows: slice) -> Trace:
    def part(column: Any) -> Any:
        return None if column is None else column[rows]

    arrived = trace.arrived_seconds[rows]
    return replace(
        trace,
        arrived_seconds=arrived - arrived[0],
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        max_output_tokens=part(trace.max_output_tokens),
        tenant=part(trace.tenant),
        session=None,
        turn=None,
        think_seconds=None,
        prefix_ids=None if trace.prefix_ids is None else [trace.prefix_ids[i] for i in range(len(trace))[rows]],
        deadline_seconds=part(trace.deadline_seconds),
        tpot_deadline_seconds=part(trace.tpot_deadline_seconds),
        end_deadline_seconds=part(trace.end_deadline_seconds),
        program=part(trace.program),
        stage=part(trace.stage),
        stages=part(trace.stages),
        program_deadline_seconds=part(trace.program_deadline_seconds),
        priority=part(trace.priority),
        adapter=part(trace.adapter),
    )
