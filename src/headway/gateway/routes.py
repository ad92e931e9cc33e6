"""Paths of the gateway: its own are answered at once, those of the API go through the queue to a replica.

`HEALTH_PATHS` and `INSIDE_PATHS`, below, list its own paths; `openai/allowed_paths.py` lists those of the API.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from headway.gateway.administration import Administration, is_admin, takes_body
from headway.gateway.api_routes import ApiRoutes
from headway.gateway.gateway_twin import GatewayTwin
from headway.gateway.head_refusals import foreign_host, loop
from headway.gateway.learned.learned_state import LearnedState
from headway.gateway.observing.hour_series import HourSeries
from headway.gateway.observing.page import PAGE_PATHS, page_file, state_of, to_the_page
from headway.gateway.observing.prometheus_text import CONTENT_TYPE
from headway.gateway.observing.request_history import REMEMBERED, RequestHistory
from headway.gateway.openai.allowed_paths import is_of_the_api
from headway.gateway.openai.error_responses import Reason, bad_request, error_response, not_found
from headway.gateway.openai.error_shapes import shaped
from headway.gateway.queueing.request_state import id_text
from headway.gateway.relay.exchange import BROKE
from headway.gateway.trusted_sources import is_loopback, leads_here
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import Headers, HttpRequest, Response, with_headers
from headway.gateway.wire.request_target import ALLOWED_METHODS
from headway.gateway.wire.sliced_answer import SlicedAnswer
from headway.version import __version__

_REQUESTS_SHOWN = 50


class PublicRoutes:
    """The public address: the OpenAI API, health, and (without an address of their own) metrics and the live page."""

    def __init__(
        self,
        api: ApiRoutes,
        administration: Administration,
        history: RequestHistory,
        learned: LearnedState,
        twin: GatewayTwin,
        *,
        hour: HourSeries,
        has_admin: bool,
    ) -> None:
        """`has_admin`: there is an admin address."""
        self.hour = hour
        self.api = api
        self.dispatcher = api.dispatcher
        self.administration = administration
        self.history = history
        self.metrics = api.metrics
        self.learned = learned
        self.twin = twin
        self.refusal_log = api.refusal_log
        self._has_admin = has_admin
        self._is_on_loopback = is_loopback(api.dispatcher.settings.listen)
        self.stands_by: Callable[[], bool | None] = lambda: None  # whether another gateway holds the lease
        self.is_leaving = False  # the address closes soon, which `/ready` shows; requests are still taken

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken, and some replica is up to serve them, or none need be."""
        dispatcher = self.dispatcher
        if self.is_leaving or dispatcher.is_draining or not dispatcher.served_queues.may_serve():
            return False
        return dispatcher.settings.health.ready_without_replica or any(one.is_up for one in dispatcher.replicas)

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        """The response to a request that is not valid HTTP or too large; the page that sent it may read it."""
        origin = next((value for name, value in headers if name == b"origin"), None)
        return with_headers(bad_request(status, message), self.api.cross_origin(origin).headers)

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """What needs no body is refused before it is read: a foreign host name, a wrong key, an unlisted path."""
        try:
            return self._refused_by_head(request)
        except Exception as error:
            self.dispatcher.errors.contained("routes", error)
            return error_response(500, BROKE, Reason.INTERNAL_ERROR)

    def _refused_by_head(self, request: HttpRequest) -> Response | None:
        settings = self.dispatcher.settings
        if self._is_on_loopback and not settings.tenant and not leads_here(request.named.get(b"host"), settings.hosts):
            return foreign_host()
        if is_of_the_api(request.path):
            return self.api.refuse_head(request)
        if request.was_passed_on(self.api.via):
            return loop()
        is_here = is_admin(request.path) and not self._has_admin
        return self.administration.refuse_head(request) if is_here else None

    def shaped(self, response: Response, path: str) -> Response:
        """An error in the shape of the API that the path belongs to."""
        return shaped(response, path)

    def takes_body(self, request: HttpRequest) -> bool:
        """Of our own paths `/admin` alone may need one, where it is served here."""
        if is_of_the_api(request.path):
            return request.refusal is None
        return not self._has_admin and takes_body(request)

    def refused(self, response: Response, address: str) -> None:
        """Count it: it entered no queue, and no explanation of it is kept."""
        self.api.refused(response, address)

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """At once where the path is the gateway's own, else through the queue."""
        try:
            return self._answer(request, client)
        except Exception as error:  # this client's request ends, and no other
            self.dispatcher.errors.contained("routes", error)
            client.break_off(error_response(500, BROKE, Reason.INTERNAL_ERROR))
            return None

    def _answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        path = request.path
        if is_of_the_api(path):
            return self.api.answer(request, client)
        if is_admin(path) and not self._has_admin:
            client.respond(self.administration.answer(request, client.address))
            return None
        # All tenants' traffic: with keys, which a reload may bring, it is on the admin address or nowhere.
        if self._has_admin or self.dispatcher.settings.tenant:
            return send(client, own_answer(self, request, HEALTH_PATHS, "the API is under /v1/"))
        return send(client, own_answer(self, request, _ALL_PATHS, "the API is under /v1/, the live page at /headway/"))


def _json(content: object) -> Response:
    return Response(200, json.dumps(content).encode())


OwnAnswer: TypeAlias = Callable[[PublicRoutes, HttpRequest], Response | Iterator[bytes]]
"""A whole response, or the slices of a long text in Prometheus's format."""


def send(client: ClientConnection, answer: Response | Iterator[bytes]) -> PendingAnswer | None:
    """Answer at once, or in slices."""
    if isinstance(answer, Response):
        client.respond(answer)
        return None
    sliced = SlicedAnswer(client, answer, CONTENT_TYPE)
    sliced.begin()
    return sliced


def own_answer(
    routes: PublicRoutes, request: HttpRequest, paths: Mapping[str, OwnAnswer], otherwise: str
) -> Response | Iterator[bytes]:
    """The answer of one of our own `paths`; to another one 404, and `otherwise` says where to look."""
    if request.path == "*":
        return Response(200, b"", headers=((b"allow", ALLOWED_METHODS),))
    answer = paths.get(request.path)
    if answer is None:
        return not_found(f"unknown path {request.path}; {otherwise}")
    return answer(routes, request)


def _health(routes: PublicRoutes, request: HttpRequest) -> Response:
    return Response(200, b'{"status":"ok"}')


def _ready(routes: PublicRoutes, request: HttpRequest) -> Response:
    dispatcher = routes.dispatcher
    up = sum(replica.is_up for replica in dispatcher.replicas)
    drained = sum(replica.is_drained for replica in dispatcher.replicas)
    is_leaving = routes.is_leaving or dispatcher.is_draining
    ready = routes.is_ready
    facts = {"ready": ready, "replicas_up": up, "replicas_drained": drained, "draining": is_leaving}
    stands_by = routes.stands_by()
    if stands_by is not None:
        facts["standby"] = stands_by
    return Response(200 if ready else 503, json.dumps(facts).encode())


def _version(routes: PublicRoutes, request: HttpRequest) -> Response:
    return _json({"version": __version__})


def _metrics(routes: PublicRoutes, request: HttpRequest) -> Response | Iterator[bytes]:
    return Response(200, b"", CONTENT_TYPE) if request.method == b"HEAD" else routes.metrics.slices()


def _state(routes: PublicRoutes, request: HttpRequest) -> Response:
    state = state_of(
        routes.dispatcher, routes.metrics.fairness(), routes.history.latest(_REQUESTS_SHOWN), routes.learned.tuned
    ) | {"auto": routes.twin.shown()}
    if routes.api.batches is not None:
        state["batches"] = routes.api.batches.shown()
    return Response(200, json.dumps(state).encode(), headers=((b"cache-control", b"no-store"),))


def _hour(routes: PublicRoutes, request: HttpRequest) -> Response:
    content = json.dumps(routes.hour.shown(), separators=(",", ":")).encode()
    return Response(200, content, headers=((b"cache-control", b"no-store"),))


def _why(routes: PublicRoutes, request: HttpRequest) -> Response:
    wanted = id_text(unquote_to_bytes(request.target.partition(b"?id=")[2]))
    entry = routes.history.find(wanted)
    if entry is None:
        return not_found(f"no such request among the latest {REMEMBERED:,}")
    return _json(entry)


def _to_the_page(routes: PublicRoutes, request: HttpRequest) -> Response:
    return to_the_page()


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
        "/headway/hour": _hour,  # and its charts
        "/headway": _to_the_page,
        "/headway/why": _why,  # why one request waited
        **dict.fromkeys(PAGE_PATHS, _page_file),
    }
)
"""All tenants' traffic: on the admin address; on the public one if neither admin address nor keys are configured."""

_ALL_PATHS: Mapping[str, OwnAnswer] = MappingProxyType({**HEALTH_PATHS, **INSIDE_PATHS})
ADMIN_PATHS: Mapping[str, OwnAnswer] = MappingProxyType({"/health": _health, "/ready": _ready, **INSIDE_PATHS})
"""Answered on the admin address."""
