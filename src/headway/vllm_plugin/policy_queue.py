"""Policy queue: vLLM's `RequestQueue` over our waiting queue.

Laws: peek and pop agree within a scan; `remove_requests` ignores requests that do not wait here; `len` counts every
waiting request; false means "admit none now", and only while something runs, so that the engine never spins on nothing;
a request that cannot run yet is parked, and a bounded number of those is checked per scan; a preempted request comes
back in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from headway.domain.request import Request
from headway.scheduling.head_lookups import MOVES_PER_STEP
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.offline_steps import OfflineSteps
from headway.vllm_plugin.request_book import RequestBook
from headway.vllm_plugin.request_entries import Entry, Place
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest

_BLOCKED_CHECKED_PER_SCAN = 256  # whether one is ready costs about a microsecond
_SKIPPED_OFFERED_PER_SCAN = 64  # offering one costs vLLM a prefix lookup


class PolicyQueue:
    """Every waiting request.

    Args:
        engine: vLLM's scheduler: which requests are blocked, ready or running, and how full memory is.
        policies: the order of the requests that can run.
        book: entries of all requests in the engine; hears of arrivals and admissions.
        timer: seconds, for the time spent in here.
    """

    def __init__(
        self, engine: VllmAdapter, policies: FallbackScheduler, book: RequestBook, timer: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._policies = policies
        self._book = book
        self._timer = timer
        self._entries = book.entries
        self._batch = book.batch
        self._blocked: dict[str, Entry] = {}
        self._skipped: dict[str, Entry] = {}
        self._in_vllm: dict[str, Entry] = {}
        self._outside_order = {Place.BLOCKED: self._blocked, Place.SKIPPED: self._skipped, Place.IN_VLLM: self._in_vllm}
        self._popped: Entry | None = None
        self._popped_past: Request | None = None  # the head that it passed
        self._next: Entry | None = None  # the request to offer, as far as it is known; None while one is popped
        self._passes: Request | None = None  # the head of the order, where the one to offer passes it
        self._held_until: tuple[str, int, int] | None = None  # request, batch version, step: the refusal stands
        self._refreshed = 0
        self._displaced: list[Entry] = []  # for the scan that goes on; they wait outside the order until it ends
        self._came_back: list[Entry] = []  # those displaced that wait; a token of theirs may still be on its way
        self.offline: OfflineSteps | None = None
        self.now = 0.0
        self.seconds = 0.0  # spent in here since the scan began
        self.passed = 0  # requests admitted past a head that did not fit, ever
        self.held = False  # whether admission held the head in this scan

    def __repr__(self) -> str:
        return f"PolicyQueue({self.queued()} queued, {self.parked} parked, {self._batch.size} running)"

    # what vLLM calls ------------------------------------------------------------------------------------------------

    def add_request(self, request: VllmRequest) -> None:
        """A new request, or a streaming session's next turn."""
        self._settle()
        self._next = None
        entry = self._book.get(request)
        blocked = self._engine.is_blocked(request)
        if entry is not None:
            if entry.place is Place.RUNNING:
                self.end_turn(entry)
            if entry.place is Place.IN_VLLM and not entry.turn_over:
                self._wait_again(entry)
            if entry.place is Place.FINISHED or (entry.turn_over and not blocked):
                self._take_out(entry)
                entry = None
        if entry is None:
            entry = self._book.add(request, self.now)
            self._policies.arrive(entry.view, self.now)
        if blocked and entry.place is not Place.BLOCKED:
            self._put_outside(entry, Place.BLOCKED)

    def peek_request(self) -> VllmRequest:
        """The next request. Raises IndexError if none can be offered."""
        began = self._timer()
        entry = self._offer()
        self.seconds += self._timer() - began
        return entry.request

    def pop_request(self) -> VllmRequest:
        """Hand over the request that the last peek showed; whether it joins the batch shows afterwards."""
        began = self._timer()
        entry = self._offer()
        self._popped, self._popped_past, self._next = entry, self._passes, None
        self.seconds += self._timer() - began
        return entry.request

    def prepend_request(self, request: VllmRequest) -> None:
        """A preempted request is back."""
        self._settle()
        entry = self._book.get(request) or self._book.add(request, self.now)
        self._batch.leave(entry.id)
        if entry in self._displaced:
            entry.move(Place.SKIPPED)
            self._skipped[entry.id] = entry
            self._policies.displaced(entry.refresh(), self.now)
            return
        self._take_out(entry)
        entry.refresh()
        entry.resumed = True
        if entry.place is not Place.WAITING:
            entry.move(Place.WAITING)
        self._policies.preempted(entry.view, self.now)
        self._next = None

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Requests that vLLM skipped in this scan: they keep their place in our order."""
        self._settle()
        for request in requests:
            entry = self._book.get(request)
            if entry is None:
                self.add_request(request)
            else:
                self._put_outside(entry, Place.BLOCKED if self._engine.is_blocked(request) else Place.SKIPPED)
        self._next = None

    def remove_request(self, request: VllmRequest) -> None:
        """Take one request out."""
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Take out the requests that wait here; ignore the others. O(log n) each."""
        self._settle()
        for request in requests:
            entry = self._book.get(request)
            if entry is not None and entry.place not in (Place.RUNNING, Place.FINISHED):
                self._take_out(entry)
                entry.move(Place.FINISHED)
        self._next = None

    def __bool__(self) -> bool:
        """Whether there is a request to admit now."""
        began = self._timer()
        entry = self._find_next()
        admits = entry is not None and (self._passes is not None or not self._hold(entry))
        self.seconds += self._timer() - began
        return admits

    def __len__(self) -> int:
        self._settle()
        return len(self._policies) + len(self._blocked) + len(self._skipped)

    def __iter__(self) -> Iterator[VllmRequest]:
        """Every request that waits here, by arrival."""
        waiting = [entry for entry in self._entries.values() if entry.place is Place.WAITING or entry.is_parked]
        return iter([entry.request for entry in sorted(waiting, key=_arrival)])

    def __reversed__(self) -> Iterator[VllmRequest]:
        """For vLLM 0.11, where it is abstract."""
        return iter(list(self)[::-1])

    # what our hooks call --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Between two scans: time goes on."""
        self.now = now

    def begin_scan(self, now: float) -> None:
        """Before `schedule()`: time stands still until the scan ends; requests that became ready wait in our order."""
        self._settle()
        self.now, self.seconds, self.held, self._next, self._refreshed = now, 0.0, False, None, 0
        self._came_back = [entry for entry in self._came_back if entry.place is Place.WAITING]
        for entry in self._came_back:
            entry.refresh()
        for request_id in list(islice(self._skipped, _SKIPPED_OFFERED_PER_SCAN)):
            self._wait_again(self._skipped[request_id])
        for request_id in list(islice(self._blocked, _BLOCKED_CHECKED_PER_SCAN)):
            entry = self._blocked[request_id]
            if self._engine.may_be_ready(entry.request):
                self._wait_again(entry)
            elif len(self._blocked) > _BLOCKED_CHECKED_PER_SCAN:  # others are checked in the next scan
                self._blocked[request_id] = self._blocked.pop(request_id)

    def end_scan(self) -> None:
        """After `schedule()`: see whether the last one popped runs, and which came from a queue of vLLM's own."""
        self._settle()
        for entry in self._displaced:
            if entry.place is Place.SKIPPED:
                self._wait_again(entry)
                self._came_back.append(entry)
        self._displaced.clear()
        for entry in list(self._in_vllm.values()):
            if vllm.is_running(entry.request):
                del self._in_vllm[entry.id]
                self._policies.requeue(entry.view, entry.resumed)
                self._join(entry)

    def displace(self, entry: Entry) -> None:
        """Before a scan: preempt a running request for a waiting one. It waits by its rank once the scan has ended."""
        self._displaced.append(entry)
        self._engine.preempt(entry.request)

    def end_turn(self, entry: Entry) -> None:
        """A running session has answered; it waits for its next input, in a queue of vLLM's own."""
        self._batch.leave(entry.id)
        self._policies.complete(entry.refresh(), self.now)
        entry.move(Place.IN_VLLM)
        self._in_vllm[entry.id] = entry
        entry.turn_over = True

    def next_turn(self, request: VllmRequest) -> None:
        """A session whose turn was over has got its next input, which waits from now on as a request of its own."""
        before = self._entries[vllm.request_id(request)]
        entry = self._book.add(request, self.now)
        entry.view.cached_prompt_tokens = max(entry.view.cached_prompt_tokens, vllm.computed_tokens(request))
        self._policies.arrive(entry.view, self.now)
        self._put_outside(entry, Place.BLOCKED if before.place is Place.BLOCKED else Place.IN_VLLM)

    def forget(self, entry: Entry) -> None:
        """The request ended: it waits and runs no longer."""
        self._settle()
        self._next = None
        if entry.place is Place.RUNNING:
            self._batch.leave(entry.id)
        else:
            self._take_out(entry)
        if entry.place is not Place.FINISHED:
            entry.move(Place.FINISHED)

    @property
    def parked(self) -> int:
        """Number of requests that cannot run yet: blocked or skipped."""
        return len(self._blocked) + len(self._skipped)

    def queued(self) -> int:
        """Number of requests that could run if there were room."""
        return len(self._policies)

    def parked_requests(self) -> Iterator[VllmRequest]:
        """The requests that cannot run yet, for versions of vLLM that keep them in a queue of their own."""
        return iter([entry.request for entry in chain(self._blocked.values(), self._skipped.values())])

    # the next request -----------------------------------------------------------------------------------------------

    def _offer(self) -> Entry:
        entry = self._find_next()
        if entry is None:
            raise IndexError("no request to admit now")
        return entry

    def _find_next(self) -> Entry | None:
        """The request to offer: the head of the order, or one that passes it."""
        if self._next is None:
            self._settle()
            self._passes = None
            head = self._head()
            if head is not None and self._policies.backfills and self._batch.size and self._engine.running_count():
                head = self._backfill(head)
            self._next = head
        return self._next

    def _head(self) -> Entry | None:
        """The head of the order, its cached tokens up to date."""
        while (view := self._policies.head(self.now)) is not None:
            entry = self._entries[view.id]
            if self._refreshed < MOVES_PER_STEP and self._refresh_head(entry):
                continue
            return entry
        return None

    def _backfill(self, head: Entry) -> Entry:
        """The request to admit instead of a head that does not fit or is held; the head itself if none may pass it.

        vLLM ends its scan at the first request that does not fit, so one that fits has to be shown first. Where we
        wrongly think that one fits, the scan ends as it would have anyway.
        """
        refused: list[Request] = []
        entry = head
        while not self._engine.may_fit(entry.request) or self._hold(entry):
            refused.append(entry.view)
            view = self._policies.candidate(refused, self._batch, self._engine.memory(), self.now)
            if view is None:
                return head
            entry = self._entries[view.id]
        self.held = False
        self._passes = head.view if refused else None
        return entry

    def _refresh_head(self, entry: Entry) -> bool:
        """Ask the cache about a head; queue it again if its work changed much, so that the head is chosen again."""
        if not self._book.look_up_again(entry, self.now):
            return False
        self._refreshed += 1
        self._policies.work_changed(entry.view.id)
        return True

    def _hold(self, entry: Entry) -> bool:
        """Whether the head is held: an offline one by the gate, else by the policy; never when nothing runs."""
        if entry.view.is_offline and self.offline is not None:
            self.held = self.offline.hold(entry.refresh(), self._batch.version)
            return self.held
        if (
            not self._policies.holds
            or self._policies.suspended
            or self._batch.size == 0
            or self._engine.running_count() == 0
        ):
            return False
        batch, request_id = self._batch, entry.id
        if self._held_until is not None and not self._policies.backfills:  # else a refusal stands for one step
            held, version, step = self._held_until
            if held == request_id and version == batch.version and batch.decode_steps < step:
                self.held = True
                return True
        steps = self._policies.hold_steps(entry.refresh(), batch, self._engine.memory(), self.now)
        self._held_until = (request_id, batch.version, batch.decode_steps + steps) if steps else None
        self.held = steps > 0
        return self.held

    # moves between places -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """See what became of the request popped last: it runs, or vLLM stepped over it."""
        entry = self._popped
        if entry is None:
            return
        self._popped = None
        if vllm.is_running(entry.request):
            self._join(entry, self._popped_past)
        else:  # until `prepend_requests` brings it back, here or to a queue of vLLM's own
            self._put_outside(entry, Place.IN_VLLM)

    def _join(self, entry: Entry, past: Request | None = None) -> None:
        """A request that is in our order joins the batch."""
        if past is not None and self._policies.backfills:
            self._policies.admit_past(entry.view, past, self.now)
            self.passed += 1
        else:
            self._policies.admit(entry.view.id, self.now)
        entry.move(Place.RUNNING)
        self._book.admit(entry, self.now)
        entry.resumed = False

    def _take_out(self, entry: Entry) -> None:
        """Out of our order, or out of where it stands beside it."""
        if entry.place is Place.WAITING:
            self._policies.remove(entry.view.id)
        elif (here := self._outside_order.get(entry.place)) is not None:
            here.pop(entry.id, None)

    def _put_outside(self, entry: Entry, place: Place) -> None:
        """Out of where it stands, to a place beside our order."""
        if entry.place is Place.WAITING:
            self._policies.set_aside(entry.view.id)
        else:
            self._take_out(entry)
        entry.move(place)
        self._outside_order[place][entry.id] = entry

    def _wait_again(self, entry: Entry) -> None:
        """Back into our order."""
        self._take_out(entry)
        entry.move(Place.WAITING)
        self._requeue(entry)

    def _requeue(self, entry: Entry) -> None:
        """Into our order; one that holds KV blocks goes in front: behind a head that does not fit it would block it."""
        self._policies.requeue(entry.view, entry.resumed or vllm.computed_tokens(entry.request) > 0)


def _arrival(entry: Entry) -> int:
    return entry.arrival
