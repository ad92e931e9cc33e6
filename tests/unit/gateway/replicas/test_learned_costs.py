"""Costs learned from answers: right within a few percent through outliers, apart for prompts and outputs."""

from __future__ import annotations

import math
from random import Random

import pytest

from headway.domain.costs import ServiceCosts
from headway.gateway.replicas.believed_costs import share_costs, share_of_speed_up
from headway.gateway.replicas.learned_costs import AnswerTimes, LearnedCosts
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings

TRUE = ServiceCosts(prefill_seconds_per_token=2e-4, decode_seconds_per_token=0.03)
CONFIGURED = ServiceCosts(prefill_seconds_per_token=2e-5, decode_seconds_per_token=0.02)
FIXED_SECONDS = 0.05


def answer(
    tokens: int, outputs: int, *, streams: bool = True, factor: float = 1.0, true: ServiceCosts = TRUE
) -> AnswerTimes:
    first = (FIXED_SECONDS + tokens * true.prefill_seconds_per_token) * factor
    rest = (outputs - 1) * true.decode_seconds_per_token * factor
    return AnswerTimes(tokens, first, outputs, rest) if streams else AnswerTimes(tokens, None, outputs, first + rest)


def taught(answers: list[AnswerTimes], believed: ServiceCosts = CONFIGURED) -> LearnedCosts:
    costs = LearnedCosts()
    for at, one in enumerate(answers):
        costs.answered(one, believed, float(at))
    return costs


def test_prompts_and_outputs_are_learned_apart_and_what_every_answer_takes_is_no_cost_of_a_token() -> None:
    draw = Random(3)
    costs = taught([answer(draw.randint(20, 4_000), draw.randint(8, 300)) for _ in range(64)])
    assert costs.prefill_seconds_per_token == pytest.approx(TRUE.prefill_seconds_per_token, rel=0.02)
    assert costs.decode_seconds_per_token == pytest.approx(TRUE.decode_seconds_per_token, rel=0.02)
    assert costs.as_of == 63.0


def test_a_fifth_of_the_answers_at_twenty_times_their_time_moves_no_cost_by_a_fifth() -> None:
    draw = Random(4)
    odd = [answer(draw.randint(20, 4_000), 50, factor=1.0 if number % 5 else 20.0) for number in range(64)]
    costs = taught(odd)
    assert costs.prefill_seconds_per_token == pytest.approx(TRUE.prefill_seconds_per_token, rel=0.2)
    assert costs.decode_seconds_per_token == pytest.approx(TRUE.decode_seconds_per_token, rel=0.2)


def test_prompts_of_one_length_give_their_whole_first_byte() -> None:
    costs = taught([answer(1_000, 50)] * 20)
    assert costs.prefill_seconds_per_token == pytest.approx((FIXED_SECONDS + 0.2) / 1_000)


def test_too_few_answers_show_nothing_and_old_ones_are_forgotten() -> None:
    assert LearnedCosts().as_of == -math.inf
    few = taught([answer(1_000, 50)] * 7)
    assert few.prefill_seconds_per_token is None
    assert few.decode_seconds_per_token is None
    slower = ServiceCosts(4e-4, 0.09)
    changed = taught([answer(1_000, 50)] * 64 + [answer(1_000, 50, true=slower)] * 33)
    assert changed.decode_seconds_per_token == pytest.approx(0.09)
    assert taught([answer(100, 2)] * 20).decode_seconds_per_token is None, "few tokens come in one packet"


def test_an_answer_in_one_piece_tells_of_the_part_that_takes_longer() -> None:
    outputs = taught([answer(500, 200, streams=False)] * 20, believed=TRUE)
    assert outputs.prefill_seconds_per_token is None
    assert outputs.decode_seconds_per_token == pytest.approx(TRUE.decode_seconds_per_token, rel=0.02)
    prompts = taught([answer(20_000, 10, streams=False)] * 20, believed=TRUE)
    assert prompts.prefill_seconds_per_token == pytest.approx(TRUE.prefill_seconds_per_token, rel=0.05)
    assert prompts.decode_seconds_per_token is None


def replica(name: str, costs: ServiceCosts | None = None, model: str = "m") -> UpstreamReplica:
    one = UpstreamReplica(ReplicaSettings(url="http://127.0.0.1:1", name=name), HealthSettings(), lambda: 0.0)
    one.listed({model: None}, {})
    if costs is not None:
        one.learned_costs = taught([answer(1_000 * (1 + at % 4), 50, true=costs) for at in range(20)])
    return one


def test_an_unknown_replica_costs_the_mean_of_those_with_its_model() -> None:
    fast, slow = replica("fast", ServiceCosts(1e-4, 0.01)), replica("slow", ServiceCosts(3e-4, 0.05))
    new, other = replica("new"), replica("other", model="another")
    assert len(list(share_costs([fast, slow, new, other], CONFIGURED))) == 6, "a replica at a step"
    assert fast.ledger.costs == pytest.approx((1e-4, 0.01))
    assert slow.ledger.costs == pytest.approx((3e-4, 0.05))
    assert new.ledger.costs == pytest.approx((2e-4, 0.03))
    assert other.ledger.costs == CONFIGURED
    assert [one.ledger.costs_as_of for one in (fast, slow, new, other)] == [19.0, 19.0, -math.inf, -math.inf]


def test_replicas_are_alike_that_share_a_model_and_each_counts_once() -> None:
    fast, slow = replica("fast", ServiceCosts(1e-4, 0.01), "m"), replica("slow", ServiceCosts(3e-4, 0.05), "m")
    fast.listed({"m": None, "n": None, "o": None}, {})
    both, neither, unlisted = replica("both"), replica("neither", model="p"), replica("unlisted")
    both.listed({"m": None, "n": None}, {})
    unlisted.listed(None, {})
    list(share_costs([fast, slow, both, neither, unlisted], CONFIGURED))
    assert both.ledger.costs == unlisted.ledger.costs == pytest.approx((2e-4, 0.03))
    assert neither.ledger.costs == CONFIGURED
    slow.listed(None, {})  # it may serve any model
    list(share_costs([fast, slow, both, neither, unlisted], CONFIGURED))
    assert neither.ledger.costs == pytest.approx((3e-4, 0.05))


def test_the_share_of_speed_that_is_up_weighs_a_fast_replica_more() -> None:
    fast, slow = replica("fast", ServiceCosts(1e-4, 0.0064)), replica("slow", ServiceCosts(4e-4, 0.0256))
    list(share_costs([fast, slow], CONFIGURED))
    assert share_of_speed_up([fast, slow]) == 0.0
    fast.probed(True)
    assert share_of_speed_up([fast, slow]) == pytest.approx(0.8)
    slow.probed(True)
    assert share_of_speed_up([fast, slow]) == 1.0
    assert share_of_speed_up([]) == 1.0
