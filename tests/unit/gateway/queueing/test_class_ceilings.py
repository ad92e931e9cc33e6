"""Ceilings by class: the less urgent are refused first, and never cost a more urgent one its place."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.class_ceilings import ClassCeilings
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.settings import QueueSettings, ServiceTierSettings
from tests.support.gateway_requests import gateway_request


class Asked(NamedTuple):
    priority: int
    tokens: int


def request(asked: Asked, number: int = 1) -> QueuedRequest:
    return gateway_request(number, {}, priority=asked.priority, prompt_tokens=asked.tokens).queued


def test_a_share_is_of_each_bound_and_the_sentence_says_which() -> None:
    bounds = QueueSettings(max_requests=100, max_tokens=1_000, class_ceilings={"flex": 0.29, "20": 0.0})
    ceilings = ClassCeilings(bounds, ServiceTierSettings())
    for number in range(29):
        assert ceilings.broken(request(Asked(10, 1))) is None, number
        ceilings.joined(request(Asked(10, 1)))
    message = "the queue is full for its class 'flex': 29% of 100 requests"
    broken = ceilings.broken(request(Asked(10, 1)))
    assert broken == (f"{message} (`queue.class_ceilings` of `queue.max_requests`)", Reason.CLASS_FULL)
    assert ceilings.broken(request(Asked(9, 1))) is None
    ceilings.left(request(Asked(10, 1)))
    assert ceilings.broken(request(Asked(10, 262))) is None
    assert "1,000 prompt tokens" in (ceilings.broken(request(Asked(10, 263))) or ("",))[0]
    assert "class '20': 0% of 100 requests" in (ceilings.broken(request(Asked(20, 1))) or ("",))[0]


def test_requests_that_wait_already_count() -> None:
    bounds = QueueSettings(max_requests=10, class_ceilings={"flex": 0.2})
    waiting = [request(Asked(10, 1)), request(Asked(0, 1)), request(Asked(11, 1))]
    assert ClassCeilings(bounds, ServiceTierSettings(), waiting).broken(request(Asked(10, 1))) is not None
    assert ClassCeilings(bounds, ServiceTierSettings(), waiting[:2]).broken(request(Asked(10, 1))) is None


@given(
    st.lists(st.tuples(st.builds(Asked, st.integers(-2, 3), st.integers(1, 40)), st.booleans()), max_size=60),
    st.dictionaries(st.sampled_from(["-1", "0", "1", "2"]), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
)
def test_a_more_urgent_request_is_never_refused_for_less_urgent_ones_beyond_their_ceiling(
    steps: list[tuple[Asked, bool]], shares: dict[str, float]
) -> None:
    """Whatever came before, what waits below a ceiling holds no more than its share, in requests and in tokens."""
    bounds = QueueSettings(max_requests=12, max_tokens=200, class_ceilings=shares)
    ceilings = ClassCeilings(bounds, ServiceTierSettings())
    waiting: list[tuple[Asked, QueuedRequest]] = []
    for asked, leaves in steps:
        if leaves and waiting:
            ceilings.left(waiting.pop(0)[1])
        entering = request(asked)
        broken = ceilings.broken(entering)
        held = {
            name: [other for other, _ in waiting if other.priority >= int(name)]
            for name in shares
            if asked.priority >= int(name)
        }
        breaks = any(
            len(others) + 1 > 12 * shares[name] or sum(o.tokens for o in others) + asked.tokens > 200 * shares[name]
            for name, others in held.items()
        )
        assert (broken is not None) == breaks
        if broken is None:
            ceilings.joined(entering)
            waiting.append((asked, entering))
    assert all(
        len([None for asked, _ in waiting if asked.priority >= int(name)]) <= 12 * share
        for name, share in shares.items()
    )
