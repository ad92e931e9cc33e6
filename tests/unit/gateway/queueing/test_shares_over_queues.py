"""A tenant's share holds over all its models: tenants that keep requests waiting get equal service in all queues.

The queues are served at one seat, as the dispatcher serves them; each request is answered before the next is sent.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.queue_policies import SharedAccounts
from headway.gateway.queueing.queue_turns import Turns
from headway.gateway.queueing.request_state import QueueKey
from headway.gateway.settings import PolicySettings
from headway.testing.examples import examples
from tests.support.gateway_requests import gateway_request

PROMPT_TOKENS, OUTPUT_TOKENS = 100, 50
CHARGE = PROMPT_TOKENS + 2 * OUTPUT_TOKENS
ROUNDS = 60


def serve(models_of: dict[str, set[str]], ordering: str, weights: dict[str, float] | None = None) -> Counter[str]:
    """Requests answered by tenant; every tenant keeps requests waiting for each of its models."""
    options = {"ordering": {"tenant_weights": weights}} if weights else {}
    policies = PolicySettings(ordering=ordering, options=options)
    accounts, errors, turns = SharedAccounts(), InternalErrors(lambda: 0.0), Turns[ModelQueue]()
    models = sorted(set().union(*models_of.values()))
    queues = {
        model: ModelQueue(QueueKey(model, "generate"), policies, lambda *_: (), errors, accounts) for model in models
    }
    number, now = 0, 100.0
    answered: Counter[str] = Counter()

    def arrive(tenant: str, model: str) -> None:
        nonlocal number
        number += 1
        body = {"model": model, "prompt": "x", "max_tokens": OUTPUT_TOKENS}
        request = gateway_request(number, body, tenant=tenant, payer=tenant, model=model, prompt_tokens=PROMPT_TOKENS)
        queues[model].arrive(request.queued, now)

    for tenant, wanted in sorted(models_of.items()):
        for model in sorted(wanted):
            arrive(tenant, model)
            arrive(tenant, model)
    for _ in range(ROUNDS):
        now += 1.0
        queue = turns.order(list(queues.values()), now)[0]
        queued = queue.admit(now)
        turns.served(queue, [])
        queued.produced_tokens = OUTPUT_TOKENS
        assert queued.admitted_by is not None
        queued.admitted_by.complete(queued, now)
        answered[queued.tenant] += 1
        arrive(queued.tenant, queue.key.model)
    assert not errors.policy_faults
    return answered


TENANTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.sets(st.sampled_from(["m0", "m1", "m2", "m3"]), min_size=1), min_size=2
)


@pytest.mark.parametrize("ordering", ["fair-share", "weighted-fair-queue"])
@settings(max_examples=examples(40))
@given(TENANTS)
def test_tenants_get_equal_service_over_all_their_models(ordering: str, models_of: dict[str, set[str]]) -> None:
    answered = serve(models_of, ordering)
    counts = [answered[tenant] for tenant in models_of]
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("ordering", ["fair-share", "weighted-fair-queue"])
@settings(max_examples=examples(20))
@given(st.sets(st.sampled_from(["m0", "m1", "m2", "m3"]), min_size=1))
def test_weights_hold_over_all_models_too(ordering: str, models: set[str]) -> None:
    answered = serve({"a": models, "b": {"m0"}}, ordering, {"b": 2.0})
    assert abs(answered["b"] - 2 * answered["a"]) <= 4


def test_other_orders_share_by_queues_instead() -> None:
    answered = serve({"a": {"m0", "m1", "m2"}, "b": {"m3"}}, "fcfs")
    assert answered == {"a": ROUNDS * 3 // 4, "b": ROUNDS // 4}
