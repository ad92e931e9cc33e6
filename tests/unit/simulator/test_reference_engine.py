"""The reference engine driven by hand, step by step, as the gateway's embedded engine drives it."""

from __future__ import annotations

from headway.domain.replica_view import MemoryView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER
from headway.simulator.reference_blocks import unshared_key
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from tests.support.paper_days import ASYNC, ONE_SECOND, RULES


def engine(rules: EngineRules) -> ReferenceEngine:
    policies = Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean())
    return ReferenceEngine(rules, ONE_SECOND, policies, unshared_key)


def step(replica: ReferenceEngine) -> list[tuple[int, float, bool]]:
    """(row, seconds since its token before or NEVER, whether it is the last) of every token of the next step."""
    replica.compose()
    served = replica.finish_step()
    return [(r.row, r.gap_ps if r.gap_ps == NEVER else r.gap_ps / PS_PER_SECOND, r.has_ended) for r in served]


def test_tokens_come_out_in_the_order_of_the_batch() -> None:
    replica = engine(RULES)
    replica.submit(ReferenceRequest(0, 0.0, 4), 3)
    replica.submit(ReferenceRequest(1, 0.0, 2), 1)
    assert replica.waiting == 2
    assert replica.compose() == PS_PER_SECOND
    assert (replica.waiting, replica.size, replica.now_ps) == (0, 2, 0)
    assert step(replica) == [(0, NEVER, False), (1, NEVER, True)]
    assert replica.now_ps == PS_PER_SECOND
    assert step(replica) == [(0, 1.0, False)]
    assert step(replica) == [(0, 1.0, True)]
    assert replica.compose() is None
    assert replica.memory == MemoryView(100, 100, 2)


def test_idle_time_never_runs_backwards() -> None:
    replica = engine(RULES)
    replica.idle_until(5 * PS_PER_SECOND)
    replica.idle_until(3 * PS_PER_SECOND)
    assert replica.now_ps == 5 * PS_PER_SECOND
    request = ReferenceRequest(0, 5.0, 4)
    replica.submit(request, 1)
    step(replica)
    assert (request.admitted_ps, request.first_token_ps, request.ended_ps) == (
        5 * PS_PER_SECOND,
        6 * PS_PER_SECOND,
        6 * PS_PER_SECOND,
    )


def test_a_cancelled_request_frees_its_memory_and_gets_no_token_of_steps_in_flight() -> None:
    replica = engine(ASYNC)
    running, other = ReferenceRequest(0, 0.0, 4), ReferenceRequest(1, 0.0, 4)
    replica.submit(running, 9)
    replica.submit(other, 3)
    assert step(replica) == [(0, NEVER, False), (1, NEVER, False)]
    replica.compose()
    replica.cancel(running)
    assert (replica.size, replica.memory.blocks_free) == (1, 97)
    assert step(replica) == [(1, 1.0, False)]
    assert step(replica) == [(1, 1.0, True)]
    replica.cancel(running)
    replica.cancel(other)
    assert replica.memory.blocks_free == 100


def test_a_cancelled_waiting_request_leaves_the_queue() -> None:
    replica = engine(RULES)
    waiting = ReferenceRequest(0, 0.0, 4)
    replica.submit(waiting, 2)
    replica.cancel(waiting)
    assert replica.waiting == 0
    assert replica.compose() is None
