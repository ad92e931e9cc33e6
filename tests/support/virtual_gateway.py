"""A gateway's dispatcher before one simulated engine, in virtual time: no socket, no event loop, no wall clock.

Queues, policies, ledger and step clock are the gateway's own. In place of relay and engine stand a relay that submits
to the simulator's readable engine, and that engine, which serves first come, first served. What the relay tells the
dispatcher, and in which order, is what `Exchange` tells it: tokens as they come, the first byte, the end.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatch_contracts import QueueHooks
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, PromptSize, RequestMove
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import (
    HealthSettings,
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
)
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies
from headway.simulator.arrivals import LaterOfRows
from headway.simulator.outcome import NEVER, StepRecord
from headway.simulator.reference import ExpectedArrivals
from headway.simulator.reference_blocks import ContentKeys, ReferenceBlockMemory
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS, StepTime
from headway.simulator.trace import Trace
from tests.support.gateway_requests import gateway_request

_SCRAPE_SECONDS = 1.0
_HOURS = 1e6


class CountedEvents:
    """Stands in for a stream's reader: it only counts."""

    def __init__(self) -> None:
        self.events = 0


@dataclass(eq=False)
class VirtualRelay:
    """Carries one request to the engine."""

    request: GatewayRequest
    day: VirtualGateway
    row: int

    def dispatch(self, replica: UpstreamReplica) -> None:
        self.request.move(RequestMove.SENT)
        self.request.move(RequestMove.ANSWERED)
        self.request.relayed.status = 200
        self.request.relayed.reader = CountedEvents()  # type: ignore[assignment]
        self.day.submit(self)

    def refuse(self, refusal: Refusal) -> None:
        self.day.refused.append((self.row, refusal.message))
        self.day.dispatcher.end(self.request, Outcome.REFUSED, refusal.reason)

    def withdraw(self, destination: UpstreamReplica) -> bool:
        return False

    def check_silence(self, now: float) -> None:
        pass

    def cut_off(self, refusal: Refusal) -> None:
        raise NotImplementedError

    def break_off(self) -> None:
        raise NotImplementedError


@dataclass
class VirtualGateway:
    """One day; `run` once. `steps` are the engine's."""

    trace: Trace
    rules: EngineRules
    step_time: StepTime
    policies: PolicySettings
    at_step_ends: bool = False  # arrivals and ends are heard at the end of a step, and then is asked what comes next
    steps: list[StepRecord] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # rows, in order of dispatch
    refused: list[tuple[int, str]] = field(default_factory=list)
    preemptions: int = 0
    held: int = 0  # refusals of the admission policy
    full_steps: int = 0  # steps composed until the queue was empty for the first time since it was not

    def __post_init__(self) -> None:
        self.keys = ContentKeys(self.trace, self.rules.block_tokens)
        self.engine = ReferenceEngine(
            self.rules,
            self.step_time,
            Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()),
            self.keys.key,
            observer=self,
        )
        self.now = 0.0
        self.later = LaterOfRows(self.trace, ()) if self.trace.has_later_deadlines else None
        self.expected = ExpectedArrivals(self.trace)
        self.relays: dict[int, VirtualRelay] = {}
        self.in_engine: dict[int, ReferenceRequest] = {}  # by row, in order of dispatch
        self.ask_at_step: int | None = None
        self.scrape_at = 0.0
        replica = ReplicaSettings(
            url="http://127.0.0.1:1",
            max_requests=self.rules.max_num_seqs,
            prefill_tokens=self.rules.max_num_batched_tokens,
            kv_tokens=self.rules.kv_blocks * self.rules.block_tokens,
        )
        queue = QueueSettings(timeout_seconds=_HOURS, idle_seconds=_HOURS)
        settings = Settings(policies=self.policies, queue=queue, replica=(replica,))
        self.dispatcher = Dispatcher(
            settings,
            lambda: self.now,
            hooks=QueueHooks(held=self.ask_again, cached_tokens=lambda queued: self._cached(queued.arrived.number)),
        )
        self.replica = UpstreamReplica(replica, HealthSettings(), lambda: self.now, lambda: self.dispatcher.replicas)
        self.replica.probed(True)
        self.dispatcher.replace(settings, [self.replica], 0.0)

    def run(self) -> VirtualGateway:
        while True:
            ends_ps = self.engine.compose()
            if ends_ps is not None:
                if not self.at_step_ends:
                    self._arrive_until(ends_ps, inclusive=False)
                self._finish_step()
                self._arrive_until(ends_ps, inclusive=True)
            elif self.expected.next_ps is not None:
                self.engine.idle_until(self.expected.next_ps)
                self._arrive_until(self.expected.next_ps, inclusive=True)
            else:
                assert self.dispatcher.counts.inside == 0, self.dispatcher.relays
                assert self.dispatcher.counts.is_conserved()
                assert not self.dispatcher.errors.by_place, self.dispatcher.errors.by_place
                return self

    def ask_again(self, replica: UpstreamReplica, steps: int) -> None:
        """`Dispatcher`'s `held`; the timer is exact here."""
        self.held += 1
        due = self.engine.decode_steps + steps
        self.ask_at_step = due if self.ask_at_step is None else min(due, self.ask_at_step)

    def submit(self, relay: VirtualRelay) -> None:
        queued, trace, row = relay.request.queued, self.trace, relay.row
        self.sent.append(row)
        bound = 0 if trace.max_output_tokens is None else int(trace.max_output_tokens[row])
        request = ReferenceRequest(row, self.now, queued.prompt_tokens, max_output_tokens=bound or None)
        self.relays[row] = relay
        self.in_engine[row] = request
        self.engine.submit(request, int(trace.output_tokens[row]))

    def on_step(self, step: StepRecord) -> None:
        self.steps.append(step)
        waits = any(len(queue) for queue in self.dispatcher.queues.values())
        if waits and (not self.full_steps or self.full_steps == len(self.steps) - 1):
            self.full_steps = len(self.steps)
        self.preemptions += len(step.preempted)

    def _arrive_until(self, at_ps: int, *, inclusive: bool) -> None:
        """Every arrival and every look of the gateway's own up to a time, each at its own."""
        self._hold_back(self.at_step_ends)
        while True:
            next_ps = self.expected.next_ps
            scrape_ps = int(self.scrape_at * PS_PER_SECOND)
            first = scrape_ps if next_ps is None else min(next_ps, scrape_ps)
            if first > at_ps or (first == at_ps and not inclusive):
                self._hold_back(False)
                return
            self.now = (at_ps if self.at_step_ends else first) * SECONDS_PER_PS
            if first == scrape_ps:
                self._scrape()
                continue
            for arrived_ps, row in self.expected.take(first):
                self._arrive(row, arrived_ps * SECONDS_PER_PS)

    def _arrive(self, row: int, at: float) -> None:
        trace = self.trace
        bound = 0 if trace.max_output_tokens is None else int(trace.max_output_tokens[row])
        deadline = math.nan if trace.deadline_seconds is None else float(trace.deadline_seconds[row])
        session = -1 if trace.session is None else int(trace.session[row])
        body = {"model": "", "prompt": "", "stream": True, **({"max_tokens": bound} if bound else {})}
        request = gateway_request(
            row,
            body,
            prompt_tokens=int(trace.prompt_tokens[row]),
            arrived_at=at,
            tenant=trace.tenants[0 if trace.tenant is None else int(trace.tenant[row])],
            session=None if session < 0 else str(session),
            deadline=None if math.isnan(deadline) else at + deadline,
            later_deadlines=None if self.later is None else self.later.of(row, at),
            priority=0 if trace.priority is None else int(trace.priority[row]),
        )
        request.queued.prefix_hashes = trace.prefix_hashes(row)
        relay = VirtualRelay(request, self, row)
        assert self.dispatcher.announce(relay)
        self.dispatcher.arrive(relay, PromptSize(int(trace.prompt_tokens[row]), self._cached(row), None))

    def _cached(self, row: int) -> int:
        """What an estimate of cached tokens would be, were it right: what the engine's cache holds now."""
        return len(self._engine_memory().find(self._probe(row))) * self.rules.block_tokens

    def _engine_memory(self) -> ReferenceBlockMemory:
        return self.engine._memory

    def _probe(self, row: int) -> ReferenceRequest:
        return ReferenceRequest(row, self.now, int(self.trace.prompt_tokens[row]))

    def _finish_step(self) -> None:
        served = self.engine.finish_step()
        self.now = self.engine.now_ps * SECONDS_PER_PS
        for request in served:
            reader = self.relays[request.row].request.relayed.reader
            assert reader is not None
            reader.events += 1
        self._hold_back(self.at_step_ends)
        for request in served:
            relay = self.relays[request.row]
            if request.produced_tokens == 1:
                self.dispatcher.first_byte(relay.request)
            if request.ended_ps != NEVER:
                del self.in_engine[request.row]
                relay.request.relayed.usage = Usage(request.prompt_tokens, request.produced_tokens, 0)
                self.dispatcher.end(relay.request, Outcome.COMPLETED)
                self.expected.ended(request.row, self.engine.now_ps)
        if self.ask_at_step is not None and self.engine.decode_steps >= self.ask_at_step:
            self.ask_at_step = None
            self.dispatcher.pump()

    def _hold_back(self, holds: bool) -> None:
        """Ask nothing until everything of this moment is heard; then ask."""
        self.dispatcher.served_queues._is_pumping = holds
        if self.at_step_ends and not holds:
            self.dispatcher.pump()

    def _scrape(self) -> None:
        """Once a second the metrics are read, and the dispatcher sweeps."""
        self.scrape_at = self.now + _SCRAPE_SECONDS
        memory = self.engine.memory
        report = LoadReport(
            waiting=self.engine.waiting,
            running=self.engine.size,
            kv_share=1 - memory.blocks_free / memory.blocks_total,
            kv_tokens_max=memory.blocks_total * memory.block_tokens,
            preemptions=self.preemptions,
            steps=self.engine.decode_steps,
        )
        self.replica.reported(report)
        self.dispatcher.sweep(self.now)


class MemoryToldGateway(VirtualGateway):
    """One that is told what a real one estimates: the engine's blocks, once it has taken in all that was sent to it.

    Blocks that requests share count once, and a prompt that finds others' blocks needs fewer of its own.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dispatcher.served_queues._has_room = self._has_room
        self.replica.ledger.memory = self._free_memory  # type: ignore[method-assign]

    def _engine_memory(self) -> ReferenceBlockMemory:
        """A copy in which running requests hold what the next step takes, and those sent are admitted."""
        engine = self.engine
        memory = deepcopy(engine._memory, {id(self.keys): self.keys})
        for request in engine._running:
            if not engine._end_is_foreseen(request):
                tokens = request.computed_tokens + max(1, request.lacking_tokens)
                more = -(-tokens // self.rules.block_tokens) - len(request.blocks)
                memory._append(ReferenceRequest(request.row, 0.0, 1), min(max(0, more), memory.free))
        for row, request in self.in_engine.items():
            if not request.is_running:
                probe = self._probe(row)
                hits = memory.find(probe)
                if memory.needed(request.total_tokens, hits) > memory.free:
                    break  # the engine will preempt, and comparisons end there
                memory.admit(probe, request.total_tokens, hits)
        return memory

    def _free_memory(self) -> MemoryView:
        memory = self._engine_memory()
        return MemoryView(memory.free, memory.blocks, memory.block_tokens)

    def _has_room(self, replica: UpstreamReplica, request: Request) -> bool:
        if not replica.ledger.requests:
            return True
        tokens_max, replica.ledger.kv_tokens_max = replica.ledger.kv_tokens_max, None  # memory is judged here
        has_seat = replica.has_room(request)
        replica.ledger.kv_tokens_max = tokens_max
        if not has_seat:
            return False
        assert isinstance(request.id, int)
        memory, probe = self._engine_memory(), self._probe(request.id)
        return memory.needed(probe.prompt_tokens, memory.find(probe)) <= memory.free
