"""The prefill budget in the plug-in: limits that are set before a step and restored after it, and the step meter."""

from __future__ import annotations

from typing import Any

import pytest

from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from headway.vllm_plugin.step_meter import StepMeter
from tests.support.vllm_stub import StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """It notes the limits that are in force while vLLM scans."""

    def __init__(self, **headway: Any) -> None:
        super().__init__(headway={"tuning": "prefill-budget", "tpot_seconds": 0.06, **headway})
        self.now = 0.0
        self.headway.clock = lambda: self.now
        self.limits: list[tuple[int, int]] = []

    def schedule(self) -> Any:
        self.headway.before_schedule()
        self.limits.append((self.scheduler_config.long_prefill_token_threshold, self.max_num_scheduled_tokens))
        output = StubEngine.schedule(self)
        self.headway.after_schedule(output.num_scheduled_tokens)
        return output

    def step(self) -> tuple[int, int]:
        self.update_from_output(self.schedule())
        self.now += 0.01
        return self.limits[-1]


def known(engine: Engine) -> None:
    """Steps of 10 ms and 60 µs a prompt token."""
    engine.headway.meter._learned._steps = 10**9
    engine.headway.meter.step_ps = lambda decodes, context, prompts, tokens, before: 10**10 + 6 * 10**7 * tokens  # type: ignore[method-assign]


def test_a_prompt_beside_decodes_has_a_budget_and_the_next_step_has_vllms_own() -> None:
    engine = Engine()
    engine.add_request(StubRequest("a", 20, 50))
    engine.step()
    engine.add_request(StubRequest("b", 5_000, 5))
    assert engine.step() == (0, 10_000), "before step times are known"
    known(engine)
    engine.add_request(StubRequest("c", 5_000, 5))
    engine.seats = engine.max_num_active_reqs = 3
    assert engine.step() == (0, 2 + 833)
    assert engine.max_num_scheduled_tokens == 10_000
    assert engine.headway.metrics.gauges["step_token_budget", ""] == 835
    for _ in range(100):
        engine.step()
    assert sorted(engine.ended) == ["a", "b", "c"]
    assert engine.limits[-1] == (0, 10_000), "nothing waits or runs"


def test_while_policies_are_suspended_vllms_own_limits_hold() -> None:
    engine = Engine()
    known(engine)
    engine.add_request(StubRequest("a", 20, 50))
    engine.step()
    engine.add_request(StubRequest("b", 5_000, 5))
    engine.headway.policies.suspend()
    assert engine.step() == (0, 10_000)


def test_without_chunked_prefill_it_is_refused() -> None:
    class Whole(StubEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.scheduler_config.enable_chunked_prefill = False

    class Ours(PolicyScheduling, Whole):
        pass

    with pytest.raises(ValueError, match='tuning "prefill-budget" cuts prompts into pieces'):
        Ours(headway={"tuning": "prefill-budget"})


def test_the_meter_learns_what_decodes_and_prompts_take() -> None:
    engine = Engine()
    meter = engine.headway.meter
    assert isinstance(meter, StepMeter)
    for number in range(400):
        engine.add_request(StubRequest(f"r{number}", 100 + 900 * (number % 3), 2 + number % 5))
    while len(engine.ended) < 400:
        output = engine.schedule()
        given = output.num_scheduled_tokens.values()
        engine.now += 0.01 + 1e-4 * sum(one for one in given if one > 1) + 1e-3 * sum(one == 1 for one in given)
        engine.update_from_output(output)
    assert meter.is_known
    assert meter.step_ps(1, 500, 0, 0, 0) == pytest.approx(11e9, rel=0.1)
    assert meter.step_ps(1, 500, 1, 1_000, 0) == pytest.approx(111e9, rel=0.1)
