"""The fast engine as part of a fleet: a clock above drives it, and no arrival after the clock's instant is known.

A run of equal decode steps therefore stays open until the clock has passed it. A request that comes meanwhile cuts it
where the engine, had it known, would have ended it, so skipping still equals stepping. Tokens that others must hear of
at their time are the ends of a run and the first tokens of the step that runs while it is composed: at both the engine
stops (`next_ps`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from headway.domain.event import Listener
from headway.scheduling.head_lookups import note_answer
from headway.scheduling.scheduler import Policies
from headway.simulator.arrivals import FOREVER, Arrivals
from headway.simulator.constrained_step import Moment, preempt
from headway.simulator.decoding import computed_before, least_steps, run_duration
from headway.simulator.outcome import StepObserver
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.skipping import ServedTrace, SkippingEngine
from headway.simulator.step_time import SECONDS_PER_PS, StepTime
from headway.simulator.tracked import DECODING, TrackedRequest

_FINALS = 3  # place in `skipping.Outputs`

HandedOver: TypeAlias = Callable[[int, int | None, int], None]
"""Called when an engine has stopped a request: (row, when its last token there comes out, KV tokens it has then).

The time is None if it could not be stopped: it does not decode any more."""


class Carried(NamedTuple):
    """What a request brings that goes on at another replica.

    Attributes:
        produced_tokens: output tokens that came out.
        kv_tokens: tokens whose KV memory comes with it.
        last_token_ps: when its latest token came out.
    """

    produced_tokens: int
    kv_tokens: int
    last_token_ps: int


class TokenNews(Protocol):
    """What is told of the tokens of a fleet: the router."""

    def first_token(self, index: int, row: int, now: float) -> None:
        """A request's first token came out at the replica of that index."""

    def ended(self, index: int, row: int, now: float) -> None:
        """A request's last token came out there."""


class Inbox:
    """Requests sent to one engine that it has not taken in yet (`skipping.RequestSource`); tells of their tokens."""

    def __init__(self, arrivals: Arrivals, news: TokenNews, index: int) -> None:
        self._arrivals = arrivals
        self._news = news
        self._index = index
        self._waiting: list[tuple[int, int]] = []
        self.next_ps = FOREVER

    def put(self, row: int, at_ps: int) -> None:
        """A request is sent to the engine."""
        self._waiting.append((at_ps, row))
        self.next_ps = self._waiting[0][0]

    def rows(self) -> list[int]:
        """Of the requests in it."""
        return [row for _, row in self._waiting]

    def drop(self, row: int) -> bool:
        """Take a request out; False if it is not in it."""
        kept = [entry for entry in self._waiting if entry[1] != row]
        was_in = len(kept) < len(self._waiting)
        self._waiting = kept
        self.next_ps = kept[0][0] if kept else FOREVER
        return was_in

    def take(self, now_ps: int) -> Sequence[tuple[int, int]]:
        """All of them: the clock has not sent any that comes later."""
        taken, self._waiting = self._waiting, []
        self.next_ps = FOREVER
        return taken

    def first_token(self, row: int, at_ps: int) -> None:
        """A request's first token has come out."""
        self._news.first_token(self._index, row, at_ps * SECONDS_PER_PS)

    def ended(self, row: int, at_ps: int) -> None:
        """A request has ended: the client's next one is the clock's to expect."""
        self._news.ended(self._index, row, at_ps * SECONDS_PER_PS)
        self._arrivals.ended(row, at_ps)

    def following(self, row: int) -> Sequence[int]:
        """Rows of the later turns of this row's session."""
        return self._arrivals.following(row)


class _OpenRun:
    """A run of equal decode steps that is not over yet; the first one is composed."""

    __slots__ = ("context", "decodes", "first_ps", "growth_ps", "paid", "start_ps", "steps", "waiting")

    def __init__(
        self, first_ps: int, growth_ps: int, steps: int, decodes: int, context: int, waiting: int, start_ps: int
    ) -> None:
        self.first_ps = first_ps
        self.growth_ps = growth_ps
        self.steps = steps
        self.decodes = decodes
        self.context = context
        self.waiting = waiting
        self.start_ps = start_ps
        self.paid = 1  # steps whose blocks are taken


class DrivenEngine(SkippingEngine):
    """One replica of a fleet. At an instant: `finish` if it is `next_ps`, then `deliver`, then `compose_steps`.

    Attributes:
        next_ps: when it acts next by itself, picoseconds; `FOREVER` while it is idle.
    """

    def __init__(
        self,
        served: ServedTrace,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        plugin: PluginRules,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
        inbox: Inbox,
        replica_id: str,
    ) -> None:
        self._inbox = inbox
        super().__init__(served, rules, step_time, policies, plugin, observer, listeners, self._inbox)
        self._replica_id = replica_id
        self._open: _OpenRun | None = None
        self.next_ps = FOREVER
        self._to_stop: list[tuple[int, HandedOver]] = []
        self._handed: dict[int, TrackedRequest] = {}  # by row: stopped, and not gone yet
        self._landings = 0
        self._landed: list[tuple[int, int, Carried]] = []  # (row, when it came here, what it brings)

    # At an instant

    def finish(self) -> bool:
        """Go on to `next_ps`; whether steps are to be composed there."""
        run = self._open
        composes = True
        if run is None:
            self._finish_oldest()
        elif self._flying and self._flying[0][_FINALS]:
            self._finish_oldest()
            composes = False  # the run goes on
        else:
            self._close(run)
            if self._depth == 1:
                self._finish_oldest()
        if composes:
            self.next_ps = FOREVER  # until `compose_steps`
        else:
            self._set_next()
        return composes

    def deliver(self, row: int, at_ps: int) -> bool:
        """A request is sent to the engine at the clock's instant; whether steps are to be composed now."""
        self._inbox.put(row, at_ps)
        return self._interrupt(at_ps)

    def _interrupt(self, at_ps: int) -> bool:
        """What waits here has changed: look at it where the next step is composed; whether that is now."""
        run = self._open
        if run is not None:
            steps = self._steps_until(run.first_ps, run.growth_ps, at_ps)
            if steps < run.steps:
                run.steps = steps
                if steps == 1:
                    self._close(run)
                self._set_next()
                if self.next_ps == at_ps:
                    return self.finish()
        elif not self._flying and at_ps > self._now_ps:
            self.curve.sample(self._now_ps, 0, 0, 0)  # idle until then
            self._now_ps = at_ps
        return self._now_ps == at_ps

    def compose_steps(self) -> None:
        """Compose steps while there is room in the pipeline, or until a run of them opens."""
        if self._to_stop:
            self._hand_over()
        if self._landed:
            self._take_landed()
        if self._inbox.next_ps <= self._now_ps:
            self._take_arrivals()
        flying = self._flying
        while self._open is None and len(flying) < self._depth and self._compose():
            pass
        if self._open is not None:
            self._set_next()
        elif flying:
            self.next_ps = flying[0][0]
        elif self._batch.members or len(self._scheduler.queue):
            raise RuntimeError(f"nothing can run at {self._now_ps} ps although requests wait")
        else:
            self.next_ps = FOREVER

    # Requests that go elsewhere, or come from there

    def fresh_rows(self) -> set[int]:
        """Rows of the requests that were sent here and have never run here."""
        queued = [request for request in self._scheduler.queue if isinstance(request, TrackedRequest)]
        return {*self._inbox.rows(), *[request.row for request in queued if not request.high_water_tokens]}

    def waiting_requests(self) -> int:
        """How many requests wait here."""
        return len(self._inbox.rows()) + len(self._landed) + len(self._scheduler.queue)

    def take_back(self, row: int, at_ps: int) -> bool:
        """A request that waits goes elsewhere; whether steps are to be composed now."""
        if self._inbox.drop(row):
            return False
        self._scheduler.cancel(row, at_ps * SECONDS_PER_PS)
        return self._interrupt(at_ps)

    def stop_request(self, row: int, at_ps: int, told: HandedOver) -> bool:
        """Stop a running request before the next step; whether that is composed now."""
        self._to_stop.append((row, told))
        return self._interrupt(at_ps)

    def hand_over(self, row: int, at_ps: int) -> Carried:
        """A request that was stopped leaves: its memory has been copied."""
        request = self._handed.pop(row)
        self._scheduler.left(request, at_ps * SECONDS_PER_PS)
        kv_tokens = request.prompt_tokens + request.produced_tokens - 1
        return Carried(request.produced_tokens, kv_tokens, request.last_token_ps)

    def land(self, row: int, at_ps: int, carried: Carried) -> bool:
        """A request comes with its memory; whether steps are to be composed now."""
        self._landed.append((row, at_ps, carried))
        return self._interrupt(at_ps)

    def _hand_over(self) -> None:
        batch, step = self._batch, self._step + 1
        for row, told in self._to_stop:
            request = next((member for member in batch.members if member.row == row), None)
            if request is None or request.phase != DECODING:
                told(row, None, 0)
                continue
            kv_tokens, moment = computed_before(request, step), Moment(step, self._now_ps, self._busy_until_ps)
            batch.wasting -= request.finish_step < step
            is_owed = preempt(batch, moment, request, 0, was_stalled=request in batch.stalled)
            batch.stalled = [other for other in batch.stalled if other is not request]
            self._handed[row] = request
            if is_owed:
                self._flying[-1][5].append(request)  # see `skipping.Outputs`
            told(row, self._flying[-1][0] if is_owed else self._now_ps, kv_tokens)
        self._to_stop.clear()

    def _take_landed(self) -> None:
        now, limit = self._now_ps * SECONDS_PER_PS, self._rules.max_model_tokens
        for row, at_ps, carried in self._landed:
            client_sent_at = self._columns.arrived_ps[row] * SECONDS_PER_PS
            request = self._request_factory.make(row, at_ps * SECONDS_PER_PS, client_sent_at, limit)
            request.replica_id = self._replica_id
            request.carried_tokens = carried.kv_tokens
            request.high_water_tokens = request.recomputed_below = carried.kv_tokens
            request.last_token_ps = carried.last_token_ps
            request.produced_tokens = carried.produced_tokens
            note_answer(request, self._batch.memory.cached_tokens(request), now)
            request.produced_tokens = 0
            self._landings += 1
            request.generation = self._landings << 32  # one that was here before has left entries with its own
            self._scheduler.resume_from_elsewhere(request, carried.produced_tokens, now)
        self._landed.clear()
        self._looks_up = self._rules.prefix_caching

    # The beginning and the end

    def start_at(self, at_ps: int) -> None:
        """The engine serves from then on, and is idle."""
        self._now_ps = at_ps

    def stop(self, at_ps: int) -> None:
        """The engine fails: what it holds is lost. Steps that are composed count, whether or not they are over."""
        run = self._open
        if run is not None:
            run.steps = min(run.steps, self._steps_until(run.first_ps, run.growth_ps, at_ps))
            self._close(run)
        self._note_lost_tokens()
        self.next_ps = FOREVER
        self.curve.sample(max(at_ps, self._now_ps), 0, 0, 0)

    def _note_lost_tokens(self) -> None:
        """What is computed of the prompts here has to be computed again where they are tried next."""
        lost = self._columns.lost_tokens
        for request in [*self._batch.members, *self._scheduler.queue]:
            assert isinstance(request, TrackedRequest)
            computed = min(request.prompt_tokens, max(request.computed_tokens, request.recomputed_below))
            if computed:
                lost[request.row] = computed

    def end_day(self, at_ps: int) -> None:
        """The fleet's day ends then: from its own end on the engine was idle."""
        if self._now_ps < at_ps:
            self.curve.sample(self._now_ps, 0, 0, 0)

    def _set_next(self) -> None:
        run = self._open
        if run is None:
            self.next_ps = self._flying[0][0] if self._flying else FOREVER
        elif self._flying and self._flying[0][_FINALS]:
            self.next_ps = self._flying[0][0]
        else:  # with two steps in flight the next one is composed when the last but one has ended
            self.next_ps = run.start_ps + run_duration(run.first_ps, run.growth_ps, run.steps + 1 - self._depth)

    # The open run

    def _run_of_steps(self, decodes: int, context: int, refusal: int, waiting: int) -> bool:
        fixed, slope = self._step_time.decode_step(decodes)
        first, growth = fixed + slope * context, slope * decodes
        steps = self._length_of_run(first, growth, refusal)
        if steps == 1:
            self._take_run(first, growth, 1, decodes, context)
            return True
        start = max(self._busy_until_ps, self._now_ps)
        self._open = _OpenRun(first, growth, steps, decodes, context, waiting, start)
        return False

    def _close(self, run: _OpenRun) -> None:
        """The run is over after `run.steps`."""
        self._open = None
        self._take_run(run.first_ps, run.growth_ps, run.steps, run.decodes, run.context, run.paid)
        self._sample(run.waiting)

    def _steps_until(self, first: int, growth: int, until_ps: int) -> int:
        run = self._open
        if run is None:
            return super()._steps_until(first, growth, until_ps)
        span = until_ps - run.start_ps
        return self._depth - 1 + least_steps(first, growth, span) if span > 0 else 1

    # What the replica tells at the clock's instant, before it composes there

    def cached_tokens(self, row: int, prompt_tokens: int, at_ps: int) -> int:
        """Prompt tokens of this row that the prefix cache holds."""
        run = self._open
        if run is not None:
            steps = min(run.steps, self._steps_until(run.first_ps, run.growth_ps, at_ps))
            if steps > run.paid:
                blocks = self._batch.decoding.blocks_of_run(self._step + run.paid, steps - run.paid)
                self._batch.memory.take(blocks)
                run.paid = steps
        return self._batch.memory.cached_tokens(self._asked(row, prompt_tokens))

    def output_tokens(self, at_ps: int) -> Iterable[tuple[int, int]]:
        """(row, output tokens that have come out) of the requests that run."""
        batch, run = self._batch, self._open
        done = batch.done_step
        if run is not None and at_ps >= run.start_ps:
            batch.done_step = self._step - 1 + _steps_done(run, at_ps)
        told = [(request.row, batch.produced_tokens(request)) for request in batch.members]
        batch.done_step = done
        return told

    def _asked(self, row: int, prompt_tokens: int) -> TrackedRequest:
        return self._request_factory.make(row, 0.0, 0.0, 0)


def _steps_done(run: _OpenRun, at_ps: int) -> int:
    """Steps of the run that have ended by then."""
    return min(run.steps, least_steps(run.first_ps, run.growth_ps, at_ps - run.start_ps + 1) - 1)
