"""A simulated day under the twin: it finds the better order, does not flap, and survives its own mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.recommendation.verdict import served
from headway.bench.twin.looking import answer_of
from headway.bench.twin.virtual_day import steered_day
from headway.simulator.replica import replica
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime
from headway.simulator.trace import Trace
from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import Judged, LookAnswer, TwinLook

FCFS, SHORT = ChosenBundle("fcfs"), ChosenBundle("shortest-prompt-first")
FAST = replica("h100", "llama-3.1-8b", max_num_seqs=16)
assert isinstance(FAST.step_time, FlooredStepTime)
SERVER = replace(FAST, step_time=ScaledStepTime(FAST.step_time, Scalars(step_scale=3.4)))
"""Slow enough to be loaded by a few requests a second."""


def day(requests: int = 2_500, seed: int = 1) -> Trace:
    """Short chats behind a few long documents, just above what the engine serves."""
    random = np.random.default_rng(seed)
    prompts = np.where(random.random(requests) < 0.1, 12_000, 200).astype(np.int64)
    arrived = np.cumsum(random.exponential(0.115, requests))
    return Trace("mixed", arrived, prompts, random.integers(10, 60, requests))


def test_it_finds_the_better_order_and_every_request_is_served() -> None:
    trace = day()
    settings = AutoSettings(on=True, objective="mean-ttft", begin="configured", window_requests=1_000)
    under = steered_day(trace, SERVER, settings, FCFS)
    assert under.switches, under.sentences
    assert under.sentences[0]
    assert np.isfinite(served(trace, under.outcome).e2e_seconds).all()
    assert (under.outcome.ended_ps >= 0).all()
    fixed = served(trace, simulate_bundle(trace, SERVER, Bundle("fcfs"), 0))
    assert served(trace, under.outcome).ttft_seconds.mean() < 0.8 * fixed.ttft_seconds.mean()
    assert len(under.switches) <= 3, "it does not flap"


def lying(look: TwinLook) -> LookAnswer:
    """Promises that the other order is ten times better, whichever rules; what is measured is told as it is."""
    other = SHORT if look.current == FCFS else FCFS
    judged = [Judged(look.current, 10.0, 10.0, 10.0), Judged(other, 1.0, 1.0, 1.0, 10.0, True)]
    return replace(answer_of(replace(look, only=(SHORT, FCFS)), lambda: 0.0), judged=judged, fidelity=1.0)


def test_a_false_promise_is_found_out() -> None:
    settings = AutoSettings(on=True, objective="mean-ttft", begin="configured", window_requests=1_000, cpu_share=1.0)
    under = steered_day(day(), SERVER, settings, SHORT, asked=lying)
    returns = [one for one in under.sentences if "returns from fcfs to shortest-prompt-first" in one]
    assert returns, under.sentences
    assert "apart by more than a factor of 2" in returns[0]
    assert [label for _, label in under.switches] == ["fcfs", "shortest-prompt-first"]


def test_a_look_that_fails_changes_nothing() -> None:
    def failing(look: TwinLook) -> LookAnswer:
        raise ValueError("the look failed: on purpose")

    trace = day(600)
    under = steered_day(trace, SERVER, AutoSettings(on=True, begin="configured"), FCFS, asked=failing)
    alone = simulate_bundle(trace, SERVER, Bundle("fcfs"), 0)
    assert not under.switches
    assert "on purpose" in under.sentences[0]
    assert (under.outcome.ended_ps == alone.ended_ps).all()
