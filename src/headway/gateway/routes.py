"""Paths of the gateway: its own are answered at once, all others under /v1 go through the queue to a replica.

`HEALTH_PATHS` and `INSIDE_PATHS`, below, list its own paths; `openai/endpoints.py` lists those of the OpenAI API.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from headway import __version__
from headway.gateway.api_keys import ApiKeys
from headway.gateway.learned.learned_state import LearnedState
from headway.gateway.observing.gateway_metrics import GatewayMetrics
from headway.gateway.observing.page import PAGE_PATHS, page_file, state_of
from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.error_responses import Reason, bad_request, error_response
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
_BAD_KEY = "the API key is missing or unknown; send one that this gateway is configured with"
_STORIES = 1_000
_STORIES_SHOWN = 50
_REQUEST_ID_BYTES_MAX = 128


class PublicRoutes:
    """The public address: the OpenAI API, health, and (without an address of their own) metrics and the live page."""

    bad_request = staticmethod(bad_request)

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
        self.metrics = metrics
        self._on_arrival = on_arrival
        self._own_paths = {**HEALTH_PATHS, **(INSIDE_PATHS if shows_inside else {})}
        self._prompt_count = prompt_count
        self.learned = learned
        self._cached_guess = CachedTokens()
        self._id_prefix = id_prefix
        self._arrivals = ArrivalPacer(dispatcher.now)
        self._number = 0

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """A request with a wrong key is answered before its body is read."""
        if request.path.startswith("/v1/") and self.tenants.who(request.header(b"authorization")) is None:
            return error_response(401, _BAD_KEY, Reason.UNAUTHORISED)
        return None

    def refused(self, response: Response) -> None:
        """Count it: it entered no queue, and no explanation of it is kept."""
        self.metrics.rejected(response.status)

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """At once where the path is the gateway's own, else through the queue."""
        path = request.path
        if path == "/v1/models" and request.method in (b"GET", b"HEAD"):
            client.respond(_json({"object": "list", "data": list(self._models().values())}))
        elif path.startswith(_ONE_MODEL) and request.method in (b"GET", b"HEAD") and self._all_list_models():
            client.respond(self._model(unquote(path.removeprefix(_ONE_MODEL))))
        elif path.startswith("/v1/"):
            return self._proxy(request, client)
        else:
            client.respond(_own_answer(self, request, self._own_paths, "the API is under /v1/"))
        return None

    def _models(self) -> dict[str, dict[str, object]]:
        """The models of all replicas that are up, each once."""
        merged: dict[str, dict[str, object]] = {}
        for replica in self.dispatcher.replicas:
            if replica.is_up:
                for name, entry in (replica.state.models or {}).items():
                    merged.setdefault(name, entry)
        return merged

    def _all_list_models(self) -> bool:
        """Whether every replica that is up lists its models; one that does not may serve others."""
        return all(replica.state.models for replica in self.dispatcher.replicas if replica.is_up)

    def _model(self, name: str) -> Response:
        entry = self._models().get(name)
        if entry is None:
            return error_response(
                404,
                f"no replica serves the model {name[:100]!r}; GET /v1/models lists the models",
                Reason.UNKNOWN_MODEL,
            )
        return _json(entry)

    # Through the queue

    def _proxy(self, http: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        tenant = self.tenants.who(http.header(b"authorization"))
        if tenant is None:  # the keys were changed between head and body
            self._reject(client, error_response(401, _BAD_KEY, Reason.UNAUTHORISED))
            return None
        if http.method == b"HEAD":
            self._reject(client, error_response(405, "HEAD requests are not forwarded; use GET", Reason.MALFORMED))
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


OwnAnswer: TypeAlias = Callable[[PublicRoutes, HttpRequest], Response]


def _own_answer(routes: PublicRoutes, request: HttpRequest, paths: Mapping[str, OwnAnswer], otherwise: str) -> Response:
    answer = paths.get(request.path)
    if answer is None:
        return error_response(404, f"unknown path {request.path}; {otherwise}", Reason.MALFORMED)
    return answer(routes, request)


def _health(routes: PublicRoutes, request: HttpRequest) -> Response:
    return Response(200, b'{"status":"ok"}')


def _ready(routes: PublicRoutes, request: HttpRequest) -> Response:
    dispatcher = routes.dispatcher
    up = sum(replica.is_up for replica in dispatcher.replicas)
    ready = up > 0 and not dispatcher.is_draining
    body = json.dumps({"ready": ready, "replicas_up": up, "draining": dispatcher.is_draining}).encode()
    return Response(200 if ready else 503, body)


def _version(routes: PublicRoutes, request: HttpRequest) -> Response:
    return _json({"version": __version__})


def _metrics(routes: PublicRoutes, request: HttpRequest) -> Response:
    return Response(200, routes.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")


def _state(routes: PublicRoutes, request: HttpRequest) -> Response:
    latest = list(routes.stories)[-_STORIES_SHOWN:]
    state = state_of(routes.dispatcher, routes.metrics.fairness(), latest, routes.learned.tuned)
    return Response(200, json.dumps(state).encode(), headers=((b"cache-control", b"no-store"),))


def _why(routes: PublicRoutes, request: HttpRequest) -> Response:
    wanted = id_text(unquote_to_bytes(request.target.partition(b"?id=")[2]))
    story = next((story for story in reversed(routes.stories) if story["id"] == wanted), None)
    if story is None:
        return error_response(404, f"no such request among the latest {_STORIES:,}", Reason.MALFORMED)
    return _json(story)


def _page_file(routes: PublicRoutes, request: HttpRequest) -> Response:
    return page_file(request.path)


HEALTH_PATHS: Mapping[str, OwnAnswer] = MappingProxyType(
    {
        "/health": _health,  # the process answers
        "/ready": _ready,  # and a replica is up
        "/version": _version,
    }
)
"""Answered on the public address, without a key."""

INSIDE_PATHS: Mapping[str, OwnAnswer] = MappingProxyType(
    {
        "/metrics": _metrics,
        "/headway/state": _state,  # what the live page shows
        "/headway/why": _why,  # why one request waited
        **dict.fromkeys(PAGE_PATHS, _page_file),
    }
)
"""What shows all tenants' traffic: on the admin address, or on the public one where there is neither that nor a key."""

ADMIN_PATHS: Mapping[str, OwnAnswer] = MappingProxyType({"/health": _health, **INSIDE_PATHS})
"""Answered on the admin address."""


class AdminRoutes:
    """The admin address: metrics, the live page and health, and nothing of the API."""

    bad_request = staticmethod(bad_request)

    def __init__(self, public: PublicRoutes) -> None:
        self._public = public

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """No request is refused by its head."""
        return None

    def refused(self, response: Response) -> None:
        """Not counted: metrics count the public address only."""

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Every path is answered at once."""
        client.respond(_own_answer(self._public, request, ADMIN_PATHS, "the live page is at /headway/"))
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
