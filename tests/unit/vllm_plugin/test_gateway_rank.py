"""A gateway's order and a client's priority mean the same to the plug-in as to the gateway: lower runs sooner."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.domain.estimate import PointEstimate
from headway.gateway.relay.upstream_request import upstream_request
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.gateway_requests import gateway_request
from tests.support.vllm_stub import StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """One seat."""

    seats = 1


def forwarded(name: str, rank: int, priority: int, settings: dict[str, Any]) -> StubRequest:
    """The request as vLLM hands it to the scheduler, read from the bytes that the gateway sends."""
    request = gateway_request(rank, {"prompt": "x", "priority": priority}, request_id=name.encode(), priority=priority)
    request.queued.estimate, request.queued.rank = PointEstimate(10, "test"), rank
    request.queued.dispatched_at = 101.0
    health = HealthSettings()
    replica = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1", hints="always", **settings), health, float)
    sent = json.loads(upstream_request(request, replica).partition(b"\r\n\r\n")[2])
    return StubRequest(name, 50, 1, sent["priority"], **sent["vllm_xargs"])


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, ["runs", "first", "second", "third"]),  # the gateway's order of dispatch, sent as a rank
        ({"priority": "lower-first"}, ["runs", "third", "first", "second"]),  # the clients' priorities, as they are
    ],
)
def test_the_plug_in_serves_in_the_order_that_the_gateway_means(settings: dict[str, Any], order: list[str]) -> None:
    engine = Engine(headway={"ordering": "priority"})
    engine.add_request(StubRequest("runs", 50, 3))
    output = engine.schedule()
    for name, rank, priority in (("third", 30, -5), ("second", 20, 4), ("first", 10, 3)):
        engine.add_request(forwarded(name, rank, priority, settings))
    while engine.requests:
        engine.update_from_output(output)
        output = engine.schedule()
    assert engine.admitted == order
