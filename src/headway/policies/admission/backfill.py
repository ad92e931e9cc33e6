"""Backfill: smaller requests may pass a head that does not fit, if they do not delay it."""

from __future__ import annotations

from headway.domain.event import Admitted, Cancelled, Completed, Event
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestId, RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import AdmissionPolicy, LossListener, Need
from headway.policies.event_fanout import EventFanout

_PREFILL_TOKENS_PER_STEP = 2_048
_NO_ESTIMATE = "request {!r} has no length estimate, which backfill needs: name a predictor with --prediction"


class Backfill:
    """Another admission policy, with smaller requests let past a head that does not fit.

    Idea: a large request at the head keeps memory idle that smaller ones could use meanwhile. Work out when the head
        will fit, and let requests pass that will be gone by then, or that need no more than will be free beside the
        head.
    Source: EASY backfilling (Lifka, JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 2001) with KV blocks as processors.
        The head's reservation is the first expected end of a running request at which enough blocks are free for all it
        will need. Estimates are means for running requests and the `quantile` for one that wants to pass, one step more
        and one for each 2,048 tokens of prompt for its prefill. At most `skips_max` requests pass the same head, then
        it blocks as before; `look_ahead` behind it are looked at. "backfill/overflow-probability" puts another policy
        inside (greedy by default); a request that passes has to be admitted by it as well.
    Reads: prompt, cached and produced tokens, the length estimates, the client's bound, free memory, the order.
    Wins when: prompts differ widely and the head is often a large one.
    Loses when: estimates are short, so that a request that passed is still there when the head would have fitted: it is
        late then, by at most `skips_max` requests. An order that serves small ones first leaves little to gain.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY, Need.BEHIND_HEAD])

    def __init__(
        self,
        *,
        inner: AdmissionPolicy | None = None,
        skips_max: int = 16,
        look_ahead: int = 8,
        quantile: float = 0.9,
    ) -> None:
        for name, value in (("skips_max", skips_max), ("look_ahead", look_ahead)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile:g}")
        self._inner: AdmissionPolicy = Greedy() if inner is None else inner
        self._inner_listeners = EventFanout(self._inner).listeners
        self._skips_max = skips_max
        self._look_ahead = look_ahead
        self._quantile = quantile
        self._skips: dict[RequestId, int] = {}

    @property
    def look_ahead(self) -> int:
        """How many requests behind the head are looked at."""
        return self._look_ahead

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """The inner policy's answer."""
        return self._inner.hold_steps(request, batch, memory, now)

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        """Whether it will be gone when the head fits, or leaves room for it."""
        if self._skips.get(head.id, 0) >= self._skips_max:
            return False
        steps, spare_blocks = self._reservation(head, batch, memory)
        remaining = self._remaining(request)
        held = request.prompt_tokens + request.produced_tokens
        if 1 + held // _PREFILL_TOKENS_PER_STEP + remaining <= steps:
            return True
        return -(-(held + remaining) // memory.block_tokens) <= spare_blocks

    def passed(self, head: RequestView) -> None:
        """Count it."""
        self._skips[head.id] = self._skips.get(head.id, 0) + 1

    def observe(self, event: Event) -> None:
        """Forget the count of a request that no longer waits; pass the event on."""
        if isinstance(event, (Admitted, Cancelled, Completed)):
            self._skips.pop(event.request.id, None)
        for listener in self._inner_listeners:
            listener.observe(event)

    def memory_lost(self, tokens: int) -> None:
        """Pass it on to the inner policy."""
        if isinstance(self._inner, LossListener):
            self._inner.memory_lost(tokens)

    def _reservation(self, head: RequestView, batch: BatchView, memory: MemoryView) -> tuple[int, int]:
        """(steps until the head is expected to fit, blocks free beside it then); (0, 0) if no end makes room."""
        block_tokens = memory.block_tokens
        lives = sorted((_expected(r), r.prompt_tokens + r.produced_tokens) for r in batch.running())
        needed = -(-(head.prompt_tokens + head.produced_tokens + _expected(head)) // block_tokens)
        held_tokens = sum(held for _, held in lives)
        for gone, (end, held) in enumerate(lives, 1):
            held_tokens -= held
            left = len(lives) - gone
            used_blocks = (held_tokens + left * end) // block_tokens + left  # each with a partial block
            spare = memory.blocks_total - used_blocks - needed
            if spare >= 0:
                return end, spare
        return 0, 0

    def _remaining(self, request: RequestView) -> int:
        estimate = request.estimate
        if estimate is None:
            raise ValueError(_NO_ESTIMATE.format(request.id))
        return _bounded(request, estimate.remaining_quantile(self._quantile, request.produced_tokens))


def _expected(request: RequestView) -> int:
    if request.estimate is None:
        raise ValueError(_NO_ESTIMATE.format(request.id))
    return _bounded(request, max(1, round(request.estimate.remaining_mean(request.produced_tokens))))


def _bounded(request: RequestView, remaining: int) -> int:
    bound = request.max_output_tokens
    return remaining if bound is None else max(1, min(remaining, bound - request.produced_tokens))
