"""Which path is answered how: what is ours at once, everything else under /v1 through the queue to a replica."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Protocol
from urllib.parse import unquote, unquote_to_bytes

from headway import __version__
from headway.gateway.api_keys import ApiKeys
from headway.gateway.learned.learned_state import LearnedState
from headway.gateway.observing.gateway_metrics import GatewayMetrics
from headway.gateway.observing.page import page_response, state_of
from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.openai.prompt_count import Counted, PromptCount
from headway.gateway.openai.request_body import Body, prefix_hashes, read_body, why_unreadable
from headway.gateway.queueing.arrival_pacing import ArrivalPacer
from headway.gateway.queueing.cached_tokens import CachedTokens
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.queued_request import QueuedRequest
from headway.gateway.relay.exchange import Exchange, ExchangeStage, id_text
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import HttpRequest, Response

_ONE_MODEL = "/v1/models/"
_BAD_KEY = "the API key is missing or unknown"
_STORIES = 1_000
_REQUEST_ID_BYTES_MAX = 128


class Journal(Protocol):
    """Whoever writes a line for each request."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""


class PublicRoutes:
    """The public site: OpenAI's wire, health, and (where they have no address of their own) metrics and the page."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tenants: ApiKeys,
        metrics: GatewayMetrics,
        on_arrival: Sequence[Callable[[Exchange], None]],
        prompt_count: PromptCount,
        learned: LearnedState,
        *,
        shows_inside: bool,
        id_prefix: str,
    ) -> None:
        self.dispatcher = dispatcher
        self.tenants = tenants
        self.stories: deque[dict[str, object]] = deque(maxlen=_STORIES)
        self._metrics = metrics
        self._on_arrival = on_arrival
        self._shows_inside = shows_inside
        self._prompt_count = prompt_count
        self.learned = learned
        self._cached_guess = CachedTokens()
        self._id_prefix = id_prefix
        self._arrivals = ArrivalPacer(dispatcher.now)
        self._number = 0

    # Of `Site`

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """A wrong key is told before the body is read."""
        if request.path.startswith("/v1/") and self.tenants.who(request.header(b"authorization")) is None:
            return error_response(401, _BAD_KEY, Reason.UNAUTHORISED)
        return None

    def refused(self, response: Response) -> None:
        """It is in no queue and no story: only its number remains."""
        self._metrics.rejected(response.status)

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Ours at once, or through the queue."""
        path = request.path
        if path == "/v1/models" and request.method in (b"GET", b"HEAD"):
            client.respond(_json({"object": "list", "data": list(self._models().values())}))
        elif path.startswith(_ONE_MODEL) and request.method in (b"GET", b"HEAD") and self._all_list_models():
            client.respond(self._model(unquote(path.removeprefix(_ONE_MODEL))))
        elif path.startswith("/v1/"):
            return self._proxy(request, client)
        else:
            client.respond(self._own(request, path))
        return None

    def _own(self, request: HttpRequest, path: str) -> Response:
        if path == "/health":
            return Response(200, b'{"status":"ok"}')
        if path == "/ready":
            return self._ready()
        if path == "/version":
            return Response(200, json.dumps({"version": __version__}).encode())
        if self._shows_inside:
            found = inside(request, path, self)
            if found is not None:
                return found
        return error_response(404, f"there is nothing at {path or 'this address'}", Reason.MALFORMED)

    def _ready(self) -> Response:
        up = sum(replica.is_up for replica in self.dispatcher.replicas)
        fits = up > 0 and not self.dispatcher.is_draining
        body = json.dumps({"ready": fits, "replicas_up": up, "draining": self.dispatcher.is_draining}).encode()
        return Response(200 if fits else 503, body)

    def _models(self) -> dict[str, dict[str, object]]:
        """The models of all that are up, each once."""
        merged: dict[str, dict[str, object]] = {}
        for replica in self.dispatcher.replicas:
            if replica.is_up:
                for name, entry in (replica.state.models or {}).items():
                    merged.setdefault(name, entry)
        return merged

    def _all_list_models(self) -> bool:
        """Whether nobody who lists none could know of another model."""
        return all(replica.state.models for replica in self.dispatcher.replicas if replica.is_up)

    def _model(self, name: str) -> Response:
        entry = self._models().get(name)
        if entry is None:
            return error_response(404, f"the model {name[:100]!r} does not exist here", Reason.UNKNOWN_MODEL)
        return _json(entry)

    def metrics_text(self) -> bytes:
        """For Prometheus."""
        return self._metrics.text()

    def fairness(self) -> float | None:
        """Jain's index over tenants, lately."""
        return self._metrics.fairness()

    # Through the queue

    def _proxy(self, http: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        tenant = self.tenants.who(http.header(b"authorization"))
        if tenant is None:  # the keys were changed between head and body
            self._reject(client, error_response(401, _BAD_KEY, Reason.UNAUTHORISED))
            return None
        if http.method == b"HEAD":
            self._reject(client, error_response(405, "HEAD is not passed on", Reason.MALFORMED))
            return None
        endpoint = endpoint_of(http.path)
        body = read_body(http.body, endpoint) if http.body else None
        if body is None and endpoint.needs_json and http.method == b"POST":
            self._reject(client, error_response(400, why_unreadable(http.body, endpoint), Reason.MALFORMED))
            return None
        if tenant.name:  # the key was meant for us: no replica sees it
            http.headers = [pair for pair in http.headers if pair[0] != b"authorization"]
        exchange = self._exchange(http, client, body, tenant)
        for told in self._on_arrival:
            told(exchange)
        if not self.dispatcher.announce(exchange):
            return exchange
        if body is not None and self._prompt_count.takes_long(body, exchange.request.counted):
            self._prompt_count.later(body, lambda counted: self._arrive(exchange, counted))
        else:
            self._arrivals.come(partial(self._arrive, exchange, None))
        return exchange

    def _reject(self, client: ClientConnection, response: Response) -> None:
        self.refused(response)
        client.respond(response)

    def _arrive(self, exchange: Exchange, counted: Counted | None) -> None:
        """It is its turn; its client may have left meanwhile. `counted` is what a thread found in its prompt."""
        if exchange.stage is ExchangeStage.ENDED:
            return
        if counted is not None:
            exchange.request.counted = counted
            exchange.request.prompt_tokens = self._prompt_count.total(exchange.model, counted)
            self._believe_cached(exchange)
        self.dispatcher.arrive(exchange)

    def _exchange(
        self, http: HttpRequest, client: ClientConnection, body: Body | None, tenant: TenantSettings
    ) -> Exchange:
        self._number += 1
        given = http.header(b"x-request-id")
        request_id = given if given and len(given) <= _REQUEST_ID_BYTES_MAX else b""
        request_id = request_id or f"{self._id_prefix}-{self._number}".encode()
        hints = read_hints(http, body, tenant, self.dispatcher.settings.objectives)
        now = self.dispatcher.now()
        prompt = body.prompt_bytes if body is not None else b""
        prompt_tokens, counted = self._prompt_count.at_once(body, len(http.body))
        request = QueuedRequest(
            self._number,
            now,
            prompt_tokens,
            tenant="/".join(filter(None, [tenant.name, hints.fairness_id])),
            session=hints.session,
            max_output_tokens=body.output_tokens_max if body is not None else None,
            deadline=None if hints.deadline_seconds is None else now + hints.deadline_seconds,
            priority=hints.priority,
        )
        request.prefix = prefix_hashes(body.model, prompt) if body is not None else []
        request.hinted_output_tokens = hints.output_tokens
        request.body_bytes = len(http.body)
        request.payer = tenant.name or request.tenant
        request.rank = 0
        request.counted = counted
        exchange = Exchange(self.dispatcher, client, http, body, request, request_id)
        request.exchange = exchange
        self._believe_cached(exchange)
        return exchange

    def _believe_cached(self, exchange: Exchange) -> None:
        request = exchange.request
        request.cached_prompt_tokens = self._cached_guess.tokens(
            exchange.model, request.payer, request.session, request.prompt_tokens
        )

    # Of `Watcher`

    def dispatched(self, exchange: Exchange, now: float) -> None:
        """Nothing to note yet."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Learn from it, and keep its story for whoever asks why."""
        if exchange.usage is not None and exchange.body is not None:
            request, usage = exchange.request, exchange.usage
            self._prompt_count.learn(exchange.body, request.counted, usage.prompt_tokens)
            self._cached_guess.learn(exchange.model, request.payer, request.session, usage)
        self.stories.append(_story(exchange, outcome, reason, now))


def _json(content: object) -> Response:
    return Response(200, json.dumps(content).encode())


def inside(request: HttpRequest, path: str, site: PublicRoutes) -> Response | None:
    """Metrics and the page; None if the path is neither."""
    if path == "/metrics":
        return Response(200, site.metrics_text(), b"text/plain; version=0.0.4; charset=utf-8")
    if path == "/headway/state":
        state = state_of(site.dispatcher, site.fairness(), list(site.stories)[-50:], site.learned.tuned)
        return Response(200, json.dumps(state).encode(), headers=((b"cache-control", b"no-store"),))
    if path == "/headway/why":
        wanted = id_text(unquote_to_bytes(request.target.partition(b"?id=")[2]))
        told = next((story for story in reversed(site.stories) if story["id"] == wanted), None)
        if told is None:
            return error_response(404, "no such request among the latest", Reason.MALFORMED)
        return Response(200, json.dumps(told).encode())
    return page_response(path)


class AdminRoutes:
    """The site of the address of its own: metrics and the page, and nothing of the wire."""

    def __init__(self, public: PublicRoutes) -> None:
        self._public = public

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """Nothing is refused by its head."""
        return None

    def refused(self, response: Response) -> None:
        """Of `Site`; nobody counts."""

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Metrics, the page, health."""
        path = request.path
        found = inside(request, path, self._public)
        if found is None and path == "/health":
            found = Response(200, b'{"status":"ok"}')
        client.respond(found or error_response(404, f"there is nothing at {path}", Reason.MALFORMED))
        return None


def _story(exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> dict[str, object]:
    """Why a request waited or was refused: lengths and times, no text."""
    request = exchange.request
    first = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.arrived_at
    return {
        "id": id_text(exchange.request_id),
        "tenant": _shown(request.tenant),
        "model": exchange.model[:100],
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": exchange.output_tokens,
        "outcome": str(outcome),
        "status": exchange.status,
        "reason": None if reason is None else str(reason),
        "replica": None if exchange.replica is None else exchange.replica.name,
        "tries": exchange.tries,
        "waiting_at_arrival": exchange.waiting_at_arrival,
        "predicted_wait_seconds": exchange.predicted_wait_seconds,
        "waited_seconds": (exchange.dispatched_at or now) - exchange.arrived_at,
        "first_byte_seconds": first,
        "seconds": now - exchange.arrived_at,
        "why": exchange.story if reason is None else f"{reason}: {exchange.story or 'not sent to a replica'}",
    }


def _shown(name: str) -> str:
    """A tenant's name, as long as it is short; a client may have chosen it."""
    return name if len(name) <= 64 else f"{name[:48]}~{blake2b(name.encode(), digest_size=4).hexdigest()}"
