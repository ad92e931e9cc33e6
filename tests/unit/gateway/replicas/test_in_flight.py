"""The sums over the requests in flight equal those of a naive model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.queueing.wait_forecast import work_of
from headway.gateway.replicas.in_flight import InFlight
from tests.support.estimated_request import estimated_request


@given(st.lists(st.tuples(st.sampled_from("efrl"), st.integers(0, 5)), max_size=40))
def test_the_ledgers_sums_are_those_of_who_is_inside(steps: list[tuple[str, int]]) -> None:
    ledger, inside, first = InFlight("r"), {}, set()  # type: ignore[var-annotated]
    for what, number in steps:
        if what == "e" and number not in inside:
            inside[number] = estimated_request(number, 100 + number, 10)
            ledger.enter(inside[number])
        elif what == "f" and number in inside:
            ledger.first_token(inside[number])
            first.add(number)
        elif what == "l" and number in inside:
            ledger.leave(inside.pop(number))
            first.discard(number)
        elif what == "r":
            for one in inside.values():
                one.produced_tokens = 4
            ledger.refresh()
        assert (ledger.requests, ledger.answering) == (len(inside), len(first))
        assert ledger.prefill_tokens == sum(r.prompt_tokens for n, r in inside.items() if n not in first)
    ledger.refresh()
    left = sum(10 - r.produced_tokens for r in inside.values())
    assert ledger.decode_tokens == pytest.approx(left)
    assert ledger.kv_tokens == sum(ledger.kv_need(r) for r in inside.values())


def test_each_sequence_holds_memory_of_its_own_and_all_share_the_prompt() -> None:
    ledger, one, sixteen = InFlight("r"), estimated_request(1, 100, 50), estimated_request(2, 100, 50)
    sixteen.sequences = 16
    assert ledger.kv_need(one) == 100 + 25
    assert ledger.kv_need(sixteen) == 100 + 16 * 25
    ledger.enter(sixteen)
    assert (ledger.prefill_tokens, ledger.decode_tokens, ledger.kv_tokens) == (100, 800, 500)
    assert work_of(sixteen) - 100 == 16 * (work_of(one) - 100)
    ledger.leave(sixteen)
    assert (ledger.prefill_tokens, ledger.decode_tokens, ledger.kv_tokens) == (0, 0, 0)
