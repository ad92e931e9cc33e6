"""The offline gate alone: its answers at the bounds, and who is displaced. Its law is in tests/days."""

from __future__ import annotations

import math

import pytest

from headway.domain.request import Request
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES
from headway.scheduling.offline_gate import OfflineDecode, OfflineGate, OfflineRules, StepLoad

MS = 10**9  # picoseconds
NOTHING = StepLoad(0, 0, False, False, (), (), 0, False, 0)


def step_ps(decodes: int, context: int, prompts: int, tokens: int, before: int) -> int:
    """10 ms, and 1 ms for a thousand tokens of context, 1 ms for each token of a prompt."""
    return 10 * MS + context * MS // 1000 + tokens * MS + before * MS // 1000


def gate(share: float = 0.5, burst: float = 0.02, budget: int = 100) -> OfflineGate:
    return OfflineGate(OfflineRules(share, burst), step_ps, budget, seats=100)


def offline(number: int = 0, prompt: int = 100) -> Request:
    return Request(number, 0.0, prompt, is_offline=True)


def decoding(*contexts: int) -> list[OfflineDecode]:
    return [OfflineDecode(offline(number), context) for number, context in enumerate(contexts)]


def test_the_latest_go_until_those_that_stay_keep_the_share() -> None:
    load = NOTHING._replace(online_decodes=1, offline_decodes=decoding(2_000, 3_000, 1))
    assert [one.id for one in gate(0.6).plan(load).displaced] == []
    assert [one.id for one in gate(0.5).plan(load).displaced] == [2]  # 5.001 ms are too much
    assert [one.id for one in gate(0.3).plan(load).displaced] == [2, 1]
    assert [one.id for one in gate(0.0).plan(load).displaced] == [2, 1, 0]
    assert [one.id for one in gate(0.01).plan(load._replace(online_decodes=0)).displaced] == []  # nothing online inside


def test_no_more_decode_than_their_share_of_the_token_budget() -> None:
    load = NOTHING._replace(online_decodes=1, offline_decodes=decoding(*[1] * 30))
    assert len(gate(0.25, budget=100).plan(load).displaced) == 5


def test_a_prompt_waits_for_online_prompts_and_for_its_account() -> None:
    prompt = NOTHING._replace(online_decodes=1, offline_prompts=[offline()])
    assert gate().plan(prompt._replace(is_online_prefilling=True)).chunk_tokens == 0
    assert gate().plan(prompt._replace(is_online_waiting=True)).chunk_tokens == 0
    some = gate(0.1)  # 1 ms a step
    assert [some.plan(prompt).chunk_tokens for _ in range(11)] == [21, *[0] * 9, 0]
    assert some.plan(prompt).chunk_tokens == 0


def test_the_account_pays_no_more_than_it_has() -> None:
    some, spent = gate(0.1), 0
    prompt = NOTHING._replace(online_decodes=1, offline_prompts=[offline()])
    for steps in range(1, 500):
        spent += some.plan(prompt).chunk_tokens
        assert spent <= 20 + steps  # milliseconds: the burst, and a tenth of 10 ms a step
    assert spent > 450


def test_an_idle_step_is_as_long_as_a_burst() -> None:
    prompts = NOTHING._replace(offline_prompts=[offline()])
    assert gate(burst=0.03).plan(prompts).chunk_tokens == 20
    assert gate(burst=0.03).plan(prompts._replace(prompts_before=2_000)).chunk_tokens == 18
    assert gate(burst=0.001).plan(prompts).chunk_tokens == 16  # or it would never end


def test_one_joins_in_a_step() -> None:
    some, load = gate(burst=0.2), NOTHING._replace(is_offline_waiting=True, version=7)
    assert some.hold_steps(offline(), 7) == 1  # nothing is planned yet
    some.plan(load)
    assert some.hold_steps(offline(), 7) == 0
    some.admitted()
    assert some.hold_steps(offline(1), 8) == 1


def test_a_refusal_beside_nothing_online_stands_until_the_batch_changes() -> None:
    some = gate(burst=0.02)
    load = NOTHING._replace(is_offline_waiting=True, offline_decodes=decoding(9_000), version=3)
    some.plan(load)
    assert some.hold_steps(offline(prompt=2_000), 3) == UNTIL_THE_BATCH_CHANGES
    some.plan(load)
    assert some.hold_steps(offline(prompt=2), 3) == UNTIL_THE_BATCH_CHANGES
    some.plan(load._replace(version=4))
    assert some.hold_steps(offline(prompt=2), 4) == 0


def test_one_that_could_not_decode_beside_online_requests_is_not_let_in() -> None:
    some, load = gate(0.5), NOTHING._replace(online_decodes=1, is_offline_waiting=True)
    some.plan(load)
    assert some.hold_steps(offline(prompt=5_001), 0) == 1
    assert some.hold_steps(offline(prompt=5_000), 0) == 0
    none = gate(0.0)
    none.plan(load)
    assert none.hold_steps(offline(prompt=1), 0) == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"share": -0.1}, "offline share must be from 0 to 1, got -0.1"),
        ({"share": 1.1}, "offline share must be from 0 to 1, got 1.1"),
        ({"share": math.nan}, "offline share must be from 0 to 1, got nan"),
        ({"burst_seconds": 0.0}, "offline burst_seconds must be above 0, got 0.0"),
        ({"burst_seconds": math.inf}, "offline burst_seconds must be above 0, got inf"),
    ],
)
def test_a_bound_that_makes_no_sense_is_one_sentence(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^offline ") as said:
        OfflineRules(**values)
    assert str(said.value) == sentence
