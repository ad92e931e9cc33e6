"""A queue whose order is switched while requests wait, some of them not yet with the new policies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.queue_policies import SharedAccounts
from headway.gateway.queueing.request_state import GatewayRequest, QueueKey
from headway.gateway.settings import PolicySettings
from headway.scheduling.switch_line import ALLOWANCE_TOKENS, SETBACK_FACTOR
from tests.support.gateway_requests import gateway_request

KEY = QueueKey("m", "generation")
ORDERS = ("fcfs", "shortest-prompt-first", "highest-response-ratio", "ewsjf", "fair-share/fcfs")


def request(number: int, prompt_tokens: int) -> GatewayRequest:
    return gateway_request(number, {"prompt": "x", "max_tokens": 10}, prompt_tokens=prompt_tokens)


def queue(ordering: str) -> ModelQueue:
    errors = InternalErrors(lambda: 0.0)
    return ModelQueue(KEY, PolicySettings(ordering=ordering), lambda *_: (), errors, SharedAccounts())


@given(
    st.lists(st.integers(1, 60_000), min_size=1, max_size=20),
    st.lists(st.sampled_from(("move", "admit", "cancel", "arrive")), max_size=20),
    st.sampled_from(ORDERS),
    st.randoms(use_true_random=False),
)
def test_none_is_lost_and_none_is_set_back_beyond_the_bound(
    sizes: list[int], acts: list[str], new: str, lots: object
) -> None:
    line = queue("fcfs")
    waiting = [request(number, size) for number, size in enumerate(sizes, 1)]
    before, ahead = {}, 0.0
    for one in waiting:
        line.arrive(one.queued, 0.0)
        before[one.queued.id] = ahead
        ahead += one.queued.prompt_tokens
    line.change_policies(PolicySettings(ordering=new), SharedAccounts(), keeps_line=True)
    assert line.is_switching
    served, gone, number = 0.0, set(), 1_000
    for act in [*acts, *["move"] * 20, *["admit"] * 100]:
        if act == "move":
            line.move_one(1.0)
        elif act == "arrive":
            number += 1
            line.arrive(request(number, 5).queued, 1.0)
        elif act == "cancel" and len(line):
            one = list(line.requests)[lots.randrange(len(line))]
            line.cancel(one, 1.0)
            gone.add(one.id)
        elif act == "admit" and len(line):
            head = line.head(1.0)
            one = line.admit(1.0)
            assert one is head
            if one.id in before:
                assert served <= SETBACK_FACTOR * before[one.id] + ALLOWANCE_TOKENS
            served += one.prompt_tokens
            gone.add(one.id)
    while len(line):
        gone.add(line.admit(2.0).id)
    assert set(before) <= gone
    assert not line.is_switching
    assert line.waiting.tokens == 0
