"""The intake: reads a request's hints, counts its prompt, builds its state once, and lets it into the queue in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.client_terms import ClientTerms, class_used, tier_priority, tier_used
from headway.gateway.openai.endpoints import Endpoint
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.prompt_count import Counted, PromptCount, PromptFacts
from headway.gateway.openai.request_body import Body
from headway.gateway.openai.stored_objects import may_be_repeated, named_object
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.queueing.arrival_pacing import ArrivalPacer
from headway.gateway.queueing.cached_tokens import CachedTokens
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import ArrivedRequest, GatewayRequest, PromptSize, QueuedRequest
from headway.gateway.settings import Settings, TenantSettings
from headway.gateway.wire.messages import HttpRequest

_REQUEST_ID_BYTES_MAX = 128

TraceStart = Callable[[HttpRequest, Endpoint, int, float], bytes | None]
"""(request, its endpoint, its number, its arrival in seconds) -> our `traceparent`; None where it is not traced."""


class Intake:
    """One per process. `clock` gives seconds; `id_prefix` begins the ids of requests whose client gave none."""

    def __init__(
        self,
        prompt_count: PromptCount,
        clock: Callable[[], float],
        id_prefix: str,
        start_trace: TraceStart | None = None,
        known_cached: Callable[[QueuedRequest], int | None] = lambda queued: None,
    ) -> None:
        """`known_cached` says how much of a prompt is cached, as far as that is known and no estimate."""
        self._prompt_count = prompt_count
        self._clock = clock
        self._id_prefix = id_prefix.encode()
        self._start_trace = start_trace
        self._cached_tokens = CachedTokens()
        self._known_cached = known_cached
        self._pacer = ArrivalPacer(clock)
        self._number = 0

    def take(
        self,
        http: HttpRequest,
        endpoint: Endpoint,
        body: Body | None,
        prompt: PromptFacts,
        model: str,
        asked_model: str,
        tenant: TenantSettings,
        terms: ClientTerms,
        settings: Settings,
    ) -> GatewayRequest:
        """Build the state of a request that has just arrived.

        Args:
            http: as it was parsed, less what no replica may see.
            endpoint: the row of its path.
            body: the fields of its JSON body; None if it has none.
            prompt: what was read of its prompt.
            model: to which it goes; "" if it names none.
            asked_model: the name that its client gave, which may be an alias.
            tenant: of its API key.
            terms: which its client set for it.
            settings: of the gateway.
        """
        self._number = number = self._number + 1
        now, start_trace = self._clock(), self._start_trace
        given = http.named.get(b"x-request-id", b"")
        tiers = settings.service_tiers
        asked_priority, used_class = tier_priority(terms, tenant, tiers), class_used(terms, tenant, settings.offline)
        hints = read_hints(http, body, tenant, settings.objectives, asked_priority)
        if tenant.name:
            withhold(http, body, tenant, hints.priority, asked_priority)
        fairness_tenant = tenant.name
        if hints.fairness_id:
            fairness_tenant = f"{tenant.name}/{hints.fairness_id}" if tenant.name else hints.fairness_id
        arrived = ArrivedRequest(
            number=number,
            request_id=given if 0 < len(given) <= _REQUEST_ID_BYTES_MAX else b"%b-%d" % (self._id_prefix, number),
            http=http,
            endpoint=endpoint,
            body=body,
            body_bytes=len(http.body),
            streams=body is not None and bool(body.stream),
            model=model,
            asked_model=asked_model,
            tenant=fairness_tenant,
            payer=tenant.name or fairness_tenant,
            session=hints.session,
            deadline=None if hints.deadline_seconds is None else now + hints.deadline_seconds,
            later_deadlines=None if hints.later is None else hints.later.moved(now),
            ends_by=_ends_by(now, terms, settings),
            priority=hints.priority,
            hinted_output_tokens=hints.output_tokens,
            service_tier=tier_used(terms, hints.priority, tenant, tiers, used_class, settings.offline),
            request_class=used_class,
            never_waits=terms.never_waits,
            endpoints=http.endpoints,
            arrived_at=now,
            traceparent=None if start_trace is None else start_trace(http, endpoint, number, now),
            prompt=prompt,
            stored_object=named_object(http),
            may_be_repeated=may_be_repeated(http, endpoint),
        )
        tokens, counted = self._prompt_count.at_once(body, prompt, len(http.body))
        return GatewayRequest(arrived, self._size(arrived, tokens, counted))

    def let_in(self, request: GatewayRequest, enter: Callable[[PromptSize | None], None]) -> None:
        """Call `enter` when the request may go into its queue, with its prompt's size if that was counted since."""
        body = request.arrived.body
        prompt = request.arrived.prompt
        if body is None or not self._prompt_count.takes_long(body, prompt, request.queued.counted):
            self._pacer.arrive(partial(self._enter, request, enter, None))
            return

        def counted_later(counted: Counted | None) -> None:
            arrived = request.arrived
            if counted is None:  # it took too long: the estimate stands
                self._enter(request, enter, None)
            else:
                self._enter(
                    request, enter, self._size(arrived, self._prompt_count.total(arrived.model, counted), counted)
                )

        self._prompt_count.later(body, prompt, counted_later)

    def _enter(
        self, request: GatewayRequest, enter: Callable[[PromptSize | None], None], size: PromptSize | None
    ) -> None:
        queued = request.queued
        known = self._known_cached(queued)
        if known is not None:
            whole = size or PromptSize(queued.prompt_tokens, 0, queued.counted)
            size = whole._replace(cached_tokens=min(known, whole.tokens - 1))
        enter(size)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Where a replica counted the prompt: improve the estimates of prompt and cached tokens."""
        arrived, usage = request.arrived, request.relayed.usage
        if usage is not None and arrived.body is not None:
            if arrived.stored_object is None:  # else earlier turns are in the count
                self._prompt_count.learn(arrived.model, arrived.prompt, request.queued.counted, usage.prompt_tokens)
            self._cached_tokens.learn(arrived.model, arrived.payer, arrived.session, usage)

    def cached_tokens(self, queued: QueuedRequest) -> int:
        """Prompt tokens of a waiting request that are known, or else estimated, to be cached by now."""
        known = self._known_cached(queued)
        if known is not None:
            return known
        arrived = queued.arrived
        return self._cached_tokens.tokens(arrived.model, arrived.payer, arrived.session, queued.prompt_tokens)

    def _size(self, arrived: ArrivedRequest, tokens: int, counted: Counted | None) -> PromptSize:
        cached = self._cached_tokens.tokens(arrived.model, arrived.payer, arrived.session, tokens)
        return PromptSize(tokens, cached, counted)


def _ends_by(now: float, terms: ClientTerms, settings: Settings) -> float | None:
    """When its time is over: the shorter of the gateway's bound and its client's."""
    ours, theirs = settings.requests.timeout_seconds, terms.timeout_seconds
    if ours is None or theirs is None:
        seconds = theirs if ours is None else ours
        return None if seconds is None else now + seconds
    return now + min(ours, theirs)
