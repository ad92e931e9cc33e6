"""Offline requests give way: the law of `scheduling/offline_gate.py`, checked on whole days from outside the gate."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from headway.scheduling.offline_gate import OfflineRules
from headway.simulator import reference_engine
from headway.simulator.reference import simulate_reference
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.testing.strategies import PolicyNames
from tests.support.nasty_days import NastyDay, nasty_day

DAYS = 60
GREEDY = PolicyNames("fcfs", "greedy", "latest-admitted", "declared-max")


class Share(NamedTuple):
    """What one request gets of a step."""

    request: ReferenceRequest
    is_prompt: bool
    tokens: int
    before: int


class Composed(NamedTuple):
    """One step as it was launched, and who waited and ran as it was composed."""

    shares: list[Share]
    waited_online: bool  # before it
    left_waiting_online: int  # after it
    running_offline: int  # those that are to get more tokens


def composed_steps(day: NastyDay, monkeypatch: pytest.MonkeyPatch) -> list[Composed]:
    """Every step of a day on the reference engine, as its own books have it."""
    steps: list[Composed] = []
    launch, give_way = ReferenceEngine._launch, ReferenceEngine._give_way
    waited = [False]

    def noted_give_way(self: ReferenceEngine) -> int:
        waited[0] = len(self._scheduler.queue.online) > 0
        return give_way(self)

    def noted_launch(self: ReferenceEngine, draft: reference_engine._Draft) -> reference_engine._Step:
        shares = [
            Share(request, request.is_prefilling, tokens, request.computed_tokens)
            for request, tokens in draft.tokens.items()
        ]
        offline = sum(request.is_offline and self._lacks_tokens(request) for request in self._running)
        steps.append(Composed(shares, waited[0], len(self._scheduler.queue.online), offline))
        return launch(self, draft)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceEngine, "_launch", noted_launch)
        patch.setattr(ReferenceEngine, "_give_way", noted_give_way)
        trace, rules, step_time, policies, plugin = day
        simulate_reference(trace, rules, step_time, policies.make(trace), plugin=plugin)
    return steps


def cost_ps(step_time: LinearStepTime, shares: list[Share]) -> int:
    """Of a step of these shares alone, all of them sampling."""
    decodes = [share for share in shares if not share.is_prompt]
    chunks = [(share.tokens, share.before) for share in shares if share.is_prompt]
    return step_time.mixed_step(len(decodes), sum(share.before for share in decodes), chunks, len(shares))


def check_law(day: NastyDay, steps: list[Composed]) -> tuple[int, int]:
    """All four parts of it; returns how many mixed steps had offline decodes, and how many offline prompts."""
    rules, step_time, bounds = day.rules, day.step_time, day.plugin.offline
    spare = 0.0  # of the account, in picoseconds: what is left of `burst_seconds`, once it was full
    spare = burst_ps = bounds.burst_seconds * 1e12
    decoded = prompted = 0
    base_ps = step_time.mixed_step(1, 0, [], 1)
    for step in steps:
        online = [share for share in step.shares if not share.request.is_offline]
        offline = [share for share in step.shares if share.request.is_offline]
        prompts = [share for share in offline if share.is_prompt]
        decodes = [share for share in offline if not share.is_prompt]
        if not (online or step.waited_online):
            if prompts and rules.chunked_prefill:
                short = max(share.tokens for share in prompts) <= 16
                assert short or cost_ps(step_time, offline) <= burst_ps + 1, "an idle step is too long"
            continue
        online_decodes = [share for share in online if not share.is_prompt]
        own = cost_ps(step_time, online_decodes) if online_decodes else base_ps
        both = cost_ps(step_time, online_decodes + decodes)
        extra = both - own if decodes else 0
        assert extra <= bounds.share * own + 1, "offline decodes take more than their share"
        assert len(decodes) <= bounds.share * rules.max_num_batched_tokens
        if prompts:
            assert not step.waited_online, "an offline prompt is computed while an online request waits"
            assert not any(share.is_prompt for share in online), "an offline prompt is computed beside an online one"
            extra = cost_ps(step_time, online_decodes + offline) - own
        if rules.chunked_prefill:
            spare = min(burst_ps, spare + bounds.share * own - extra)
            assert spare >= -len(steps), "the account is overdrawn"  # by the rounding of a picosecond a step
        decoded += bool(decodes)
        prompted += bool(prompts)
    return decoded, prompted


def test_the_law_holds_on_nasty_days(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = prompted = 0
    for seed in range(DAYS):
        day = nasty_day("offline", seed)
        some, others = check_law(day, composed_steps(day, monkeypatch))
        decoded, prompted = decoded + some, prompted + others
    assert decoded > DAYS
    assert prompted > DAYS // 4


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same days under a gate of twice the share break the law."""
    broken = 0
    for seed in range(DAYS):
        day = nasty_day("offline", seed)
        share = day.plugin.offline.share
        steps = composed_steps(
            day._replace(plugin=replace(day.plugin, offline=OfflineRules(min(1.0, 2 * share + 0.2), 5.0))), monkeypatch
        )
        try:
            check_law(day, steps)
        except AssertionError:
            broken += 1
    assert broken > DAYS // 4


def test_no_online_request_waits_for_what_an_offline_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under greedy admission: an online request that still waits finds no offline one with a seat or a block."""
    checked = 0
    for seed in range(DAYS):
        day = nasty_day("offline", seed)._replace(policies=GREEDY)
        for step in composed_steps(day, monkeypatch):
            tokens = sum(share.tokens for share in step.shares)
            if step.waited_online and step.left_waiting_online and tokens < day.rules.max_num_batched_tokens:
                if not day.rules.chunked_prefill:
                    continue  # the next prompt may be larger than what is left of the budget
                assert not step.running_offline, "an offline request runs, and an online one waits beside free tokens"
                checked += 1
    assert checked > DAYS


def with_offline(day: NastyDay, *, is_offline: bool) -> NastyDay:
    return day._replace(trace=replace(day.trace, offline=np.full(len(day.trace), is_offline)))


@pytest.mark.parametrize("engine", [simulate, simulate_reference])
def test_without_offline_requests_nothing_changes(engine: object) -> None:
    for seed in range(20):
        day = nasty_day("offline", seed)
        days = []
        for one in (with_offline(day, is_offline=False), day._replace(trace=replace(day.trace, offline=None))):
            trace, rules, step_time, policies, plugin = one
            outcome = engine(trace, rules, step_time, policies.make(trace), plugin=plugin)  # type: ignore[operator]
            days.append((outcome.admitted_ps.tolist(), outcome.ended_ps.tolist(), outcome.preemptions.tolist()))
        assert days[0] == days[1]


def test_offline_requests_alone_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is kept back for ever, even where the rules leave them next to nothing."""
    for seed in range(DAYS):
        day = with_offline(nasty_day("offline", seed), is_offline=True)
        day = day._replace(plugin=replace(day.plugin, offline=OfflineRules(0.0, 1e-12)))
        trace, rules, step_time, policies, plugin = day
        outcome = simulate(trace, rules, step_time, policies.make(trace), plugin=plugin)
        assert (outcome.ended_ps >= 0).sum() + len(outcome.refused) == len(trace)
