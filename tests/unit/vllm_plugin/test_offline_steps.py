"""Offline requests in the plug-in: behind online ones, displaced for them, and every limit restored after the step."""

from __future__ import annotations

from typing import Any

import pytest

from headway.scheduling.offline_gate import OfflineRules
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.vllm_stub import StubEngine, StubRequest

OFFLINE = {"headway_class": "offline"}


class Engine(PolicyScheduling, StubEngine):
    def step(self) -> None:
        self.update_from_output(self.schedule())


def offline(name: str, prompt: int = 20) -> StubRequest:
    return StubRequest(name, prompt, 50, **OFFLINE)


def test_online_requests_are_offered_first_and_displace_offline_ones_for_their_seats() -> None:
    engine = Engine()
    for name in ("off0", "off1", "off2"):
        engine.add_request(offline(name))
    for _ in range(4):
        engine.step()
    assert [request.request_id for request in engine.running] == ["off0", "off1"][: len(engine.running)]
    engine.add_request(StubRequest("on0", 20, 3))
    engine.add_request(StubRequest("on1", 20, 3))
    engine.step()
    assert {request.request_id for request in engine.running} == {"on0", "on1"}
    assert engine.headway.metrics.counters["offline_displaced", ""] >= 1
    for _ in range(300):
        engine.step()
    assert set(engine.ended) == {"off0", "off1", "off2", "on0", "on1"}
    assert not engine.headway.policies.disabled
    assert engine.max_num_scheduled_tokens == 10_000
    assert engine.scheduler_config.long_prefill_token_threshold == 0


def test_beside_an_online_request_none_is_let_in_before_step_times_are_known() -> None:
    engine = Engine()
    engine.add_request(StubRequest("on", 20, 40))
    engine.step()
    engine.add_request(offline("off"))
    for _ in range(5):
        engine.step()
    assert [request.request_id for request in engine.running] == ["on"]
    assert engine.headway.queue.held
    assert "offline_waiting" in str(engine.headway.metrics.gauges)


def test_waits_of_offline_requests_are_no_harm_to_judge() -> None:
    engine = Engine()
    for number in range(9):
        engine.add_request(offline(f"off{number}"))
    assert engine.headway.harm.comparison.waits(1e6).ours == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"share": 2}, "offline share must be from 0 to 1, got 2"),
        ({"shares": 0.1}, "unknown key offline.shares"),
        ("off", "offline must be a table such as"),
    ],
)
def test_a_bound_that_makes_no_sense_is_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_config({"headway": {"offline": given}}, {})
    assert read_config({"headway": {"offline": {"share": 0.1}}}, {}).offline == OfflineRules(0.1)
