"""vLLM's `RequestQueue` over our waiting queue.

Laws: peek and pop agree within a scan; strangers are ignored by `remove_requests`; `len` counts everybody who waits;
false means "nobody to admit now", and only while something runs, so that the engine never spins on nothing; whoever
cannot run yet is parked apart and asked about a bounded number a scan; a preempted request comes back in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.request_entries import EngineBatch, Entry, Place, VllmRequest

_ASKED_PER_SCAN = 256  # of the parked ones: whether one is ready costs about a microsecond
_DEFERRED_PER_SCAN = 64  # of those stepped over: offering one costs vLLM a prefix lookup
_REFRESHED_PER_SCAN = 4  # heads moved because the prefix cache holds something else now


class PolicyQueue:
    """Everybody who waits. The engine's adapter tells what is blocked, ready and running, and how full memory is.

    Args:
        charge: who rules.
        batch: the running requests.
        entries: all requests in the engine by id; a stranger that is added is given to `newcomer`.
        newcomer: makes an entry for a request that was never seen.
        blocked: whether a status means "cannot run yet".
        ready: whether a blocked request may have become runnable.
        runs: whether vLLM has put a popped request into its running list.
        fits: whether vLLM may find blocks for a request now; asked only where others may pass one that does not fit.
        running: how many run, by vLLM's own count.
        memory: free and total blocks now.
        refresh: asks the prefix cache about a head; true if its prefill work changed much.
        admitted: hears of everybody who joins the batch, after it has joined.
        timer: seconds, for the time spent in here.
    """

    def __init__(
        self,
        *,
        charge: FallbackScheduler,
        batch: EngineBatch,
        entries: dict[str, Entry],
        newcomer: Callable[[VllmRequest], Entry],
        blocked: Callable[[VllmRequest], bool],
        ready: Callable[[VllmRequest], bool],
        runs: Callable[[VllmRequest], bool],
        fits: Callable[[Entry], bool],
        running: Callable[[], int],
        memory: Callable[[], MemoryView],
        refresh: Callable[[Entry, float], bool],
        admitted: Callable[[Entry], None],
        timer: Callable[[], float],
    ) -> None:
        self._charge = charge
        self._batch = batch
        self._entries = entries
        self._newcomer = newcomer
        self._blocked, self._ready, self._runs, self._running = blocked, ready, runs, running
        self._fits = fits
        self._memory, self._refresh, self._admitted = memory, refresh, admitted
        self._timer = timer
        self.seconds = 0.0  # spent while vLLM scanned, since somebody set it to 0
        self._parked: dict[str, Entry] = {}
        self._deferred: dict[str, Entry] = {}
        self._elsewhere: dict[str, Entry] = {}
        self._popped: Entry | None = None
        self._popped_past: Request | None = None  # the head that it passed
        self._head: Entry | None = None  # what the last look found; None: look again
        self._passes: Request | None = None  # the head of the order, where what was found passes it
        self._held_until: tuple[str, int, int] | None = None  # request, batch version, step: the refusal stands
        self._refreshed = 0
        self.now = 0.0
        self.passed = 0  # requests that came in past a head that did not fit, ever
        self.held = False  # whether admission held the head in this scan

    # what vLLM calls ------------------------------------------------------------------------------------------------

    def add_request(self, request: VllmRequest) -> None:
        """Somebody new, or a streaming session's next turn."""
        self._settle()
        self._head = None
        entry = self._entries.get(request.request_id)
        if entry is not None and entry.place is Place.RUNNING:
            self.end_turn(entry)
        if entry is not None and entry.place is Place.ELSEWHERE:
            del self._elsewhere[request.request_id]
            if not entry.turn_over:
                self._requeue(entry)
        if entry is None or entry.place is Place.ENDED or (entry.turn_over and not self._blocked(request)):
            entry = self._newcomer(request)
            self._charge.arrive(entry.view, self.now)
        if self._blocked(request):
            self._park(entry)

    def peek_request(self) -> VllmRequest:
        """Who is next. Raises IndexError when nobody can be offered."""
        began = self._timer()
        entry = self._offer()
        self.seconds += self._timer() - began
        return entry.request

    def pop_request(self) -> VllmRequest:
        """Hand over whom the last peek showed; whether it joins the batch shows afterwards."""
        began = self._timer()
        entry = self._offer()
        self._popped, self._popped_past, self._head = entry, self._passes, None
        self.seconds += self._timer() - began
        return entry.request

    def prepend_request(self, request: VllmRequest) -> None:
        """A preempted request is back."""
        self._settle()
        entry = self._entries.get(request.request_id) or self._newcomer(request)
        self._batch.leave(request.request_id)
        self._elsewhere.pop(request.request_id, None)
        entry.refresh()
        entry.resumed, entry.place = True, Place.QUEUED
        self._charge.preempted(entry.view, self.now)
        self._head = None

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Those stepped over in this scan: they keep their place in our order."""
        self._settle()
        for request in requests:
            entry = self._entries.get(request.request_id)
            if entry is None:
                self.add_request(request)
                continue
            self._elsewhere.pop(request.request_id, None)
            if self._blocked(request):
                self._parked[request.request_id], entry.place = entry, Place.PARKED
            else:
                self._deferred[request.request_id], entry.place = entry, Place.DEFERRED
        self._head = None

    def remove_request(self, request: VllmRequest) -> None:
        """Take one out."""
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Take out those who wait here; ignore the others. O(log n) each."""
        self._settle()
        for request in requests:
            entry = self._entries.get(request.request_id)
            if entry is None:
                continue
            if entry.place is Place.QUEUED:
                self._charge.withdraw(entry.view.id)
            elif entry.place is Place.PARKED:
                del self._parked[request.request_id]
            elif entry.place is Place.DEFERRED:
                del self._deferred[request.request_id]
            elif entry.place is Place.ELSEWHERE:
                del self._elsewhere[request.request_id]
            else:
                continue
            entry.place = Place.ENDED
        self._head = None

    def __bool__(self) -> bool:
        """Whether there is somebody to admit now."""
        began = self._timer()
        self._settle()
        entry = self._look()
        admits = entry is not None and (self._passes is not None or not self._hold(entry))
        self.seconds += self._timer() - began
        return admits

    def __len__(self) -> int:
        self._settle()
        return len(self._charge) + len(self._parked) + len(self._deferred)

    def __iter__(self) -> Iterator[VllmRequest]:
        """Everybody who waits here, by arrival."""
        waiting = [e for e in self._entries.values() if e.place in (Place.QUEUED, Place.PARKED, Place.DEFERRED)]
        return iter([entry.request for entry in sorted(waiting, key=_arrival)])

    def __reversed__(self) -> Iterator[VllmRequest]:
        """For vLLM 0.11, where it is abstract."""
        return iter(list(self)[::-1])

    # what our adapter calls -----------------------------------------------------------------------------------------

    def begin_scan(self, now: float) -> None:
        """Before `schedule()`: time stands still until the scan ends; who became ready is back in our order."""
        self._settle()
        self.now, self.held, self._head, self._refreshed = now, False, None, 0
        for request_id in list(self._deferred)[:_DEFERRED_PER_SCAN]:
            entry = self._deferred.pop(request_id)
            self._requeue(entry)
        for request_id in list(self._parked)[:_ASKED_PER_SCAN]:
            entry = self._parked[request_id]
            if self._ready(entry.request):
                del self._parked[request_id]
                self._requeue(entry)
            elif len(self._parked) > _ASKED_PER_SCAN:  # others are asked in the next scan
                self._parked[request_id] = self._parked.pop(request_id)

    def end_scan(self) -> None:
        """After `schedule()`: learn whether the last one popped runs, and who came in from a queue of vLLM's own."""
        self._settle()
        for entry in list(self._elsewhere.values()):
            if self._runs(entry.request):
                del self._elsewhere[entry.request.request_id]
                self._join(entry)

    def end_turn(self, entry: Entry) -> None:
        """A running session has answered; it waits for its next input, in a queue of vLLM's own."""
        self._batch.leave(entry.request.request_id)
        self._charge.complete(entry.refresh(), self.now)
        self._elsewhere[entry.request.request_id], entry.place = entry, Place.ELSEWHERE
        entry.turn_over = True

    def next_turn(self, request: VllmRequest) -> None:
        """A session whose turn was over has got its next input: from now on that waits."""
        before = self._entries[request.request_id]
        entry = self._newcomer(request)
        entry.view.cached_prompt_tokens = max(entry.view.cached_prompt_tokens, request.num_computed_tokens)
        self._charge.arrive(entry.view, self.now)
        self._charge.withdraw(entry.view.id)
        entry.place = before.place
        (self._parked if before.place is Place.PARKED else self._elsewhere)[request.request_id] = entry

    def forget(self, request: VllmRequest) -> None:
        """The request ended; wherever it is, it waits no longer."""
        self.remove_requests((request,))
        self._batch.leave(request.request_id)

    @property
    def parked(self) -> int:
        """How many cannot run yet."""
        return len(self._parked) + len(self._deferred)

    def queued(self) -> int:
        """How many could run if there were room."""
        return len(self._charge)

    def parked_requests(self) -> Iterator[VllmRequest]:
        """Those who cannot run yet, for versions of vLLM that keep them in a queue of their own."""
        return iter([entry.request for entry in chain(self._parked.values(), self._deferred.values())])

    # ----------------------------------------------------------------------------------------------------------------

    def _offer(self) -> Entry:
        self._settle()
        entry = self._look()
        if entry is None:
            raise IndexError("nobody to admit now")
        return entry

    def _look(self) -> Entry | None:
        """Whom to offer: the head of the order, its cached tokens up to date."""
        if self._head is None:
            self._passes = None
            self._head = self._first()
            if self._head is not None and self._charge.backfills and self._batch.size and self._running():
                self._head = self._backfill(self._head)
        return self._head

    def _first(self) -> Entry | None:
        """The head of the order, its cached tokens up to date."""
        while (view := self._charge.head(self.now)) is not None:
            entry = self._entries[str(view.id)]
            if self._refreshed < _REFRESHED_PER_SCAN and self._refresh_head(entry):
                continue
            return entry
        return None

    def _backfill(self, head: Entry) -> Entry:
        """Who comes in instead of a head that does not fit or is held; the head itself where nobody may.

        vLLM ends its scan at the first that does not fit, so whoever fits has to be shown to it first. Where we take
        one for fitting that does not, the scan ends as it would have.
        """
        refused: list[Request] = []
        entry = head
        while not self._fits(entry) or self._hold(entry):
            refused.append(entry.view)
            view = self._charge.candidate(refused, self._batch, self._memory(), self.now)
            if view is None:
                return head
            entry = self._entries[str(view.id)]
        self.held = False
        self._passes = head.view if refused else None
        return entry

    def _refresh_head(self, entry: Entry) -> bool:
        """Ask the cache about a head; queue it again if its work changed much, and look for the head again."""
        if not self._refresh(entry, self.now):
            return False
        self._refreshed += 1
        self._charge.withdraw(entry.view.id)
        self._requeue(entry)
        return True

    def _hold(self, entry: Entry) -> bool:
        """Whether the admission policy holds the head; never when nothing runs."""
        if not self._charge.holds or self._batch.size == 0 or self._running() == 0:
            return False
        batch, request_id = self._batch, entry.request.request_id
        if self._held_until is not None and not self._charge.backfills:  # else a refusal stands for one step
            held, version, step = self._held_until
            if held == request_id and version == batch.version and batch.decode_steps < step:
                self.held = True
                return True
        steps = self._charge.hold_steps(entry.refresh(), batch, self._memory(), self.now)
        self._held_until = (request_id, batch.version, batch.decode_steps + steps) if steps else None
        self.held = steps > 0
        return self.held

    def _settle(self) -> None:
        """See what became of the one handed over last: it runs, or vLLM stepped over it."""
        entry = self._popped
        if entry is None:
            return
        self._popped = None
        if self._runs(entry.request):
            self._join(entry, self._popped_past)
        else:
            self._charge.withdraw(entry.view.id)
            self._elsewhere[entry.request.request_id] = entry
            entry.place = Place.ELSEWHERE  # until `prepend_requests` brings it back, here or to a queue of vLLM's own

    def _join(self, entry: Entry, past: Request | None = None) -> None:
        if entry.place is not Place.QUEUED:
            self._charge.put_back(entry.view, entry.resumed)
        if past is not None and self._charge.backfills:
            self._charge.take_past(entry.view, past, self.now)
            self.passed += 1
        else:
            self._charge.take(entry.view.id, self.now)
        entry.place = Place.RUNNING
        self._batch.join(entry)
        self._admitted(entry)
        entry.resumed = False

    def _park(self, entry: Entry) -> None:
        if entry.place is Place.QUEUED:
            self._charge.withdraw(entry.view.id)
        self._parked[entry.request.request_id], entry.place = entry, Place.PARKED

    def _requeue(self, entry: Entry) -> None:
        """Into our order again; who holds KV blocks in front: behind a head that does not fit it would block it."""
        entry.place = Place.QUEUED
        self._charge.put_back(entry.view, entry.resumed or entry.request.num_computed_tokens > 0)


def _arrival(entry: Entry) -> int:
    return entry.arrival
