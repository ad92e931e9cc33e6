"""Paths of the gateway: its own are answered at once, those of the API go through the queue to a replica.

`HEALTH_PATHS` and `INSIDE_PATHS`, below, list its own paths; `openai/allowed_paths.py` lists those of the API.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from headway import __version__
from headway.gateway.administration import Administration, is_admin, takes_body
from headway.gateway.api_keys import KEY_HEADERS, ApiKeys
from headway.gateway.cross_origin import CrossOrigin, is_preflight, judge_origin, preflight_answer
from headway.gateway.head_refusals import (
    foreign_host,
    foreign_page,
    head_not_forwarded,
    loop,
    no_key,
    not_forwarded,
    repeated_term,
)
from headway.gateway.learned.learned_state import LearnedState
from headway.gateway.model_answers import model_answer, models_answer
from headway.gateway.observing.gateway_metrics import GatewayMetrics
from headway.gateway.observing.page import PAGE_PATHS, page_file, state_of
from headway.gateway.observing.prometheus_text import CONTENT_TYPE
from headway.gateway.observing.refusal_log import RefusalLog
from headway.gateway.observing.request_history import REMEMBERED, RequestHistory
from headway.gateway.openai.allowed_paths import is_of_the_api
from headway.gateway.openai.client_terms import read_terms
from headway.gateway.openai.endpoints import Endpoint, endpoint_of
from headway.gateway.openai.error_responses import Reason, bad_request, error_response, reason_of
from headway.gateway.openai.error_shapes import shaped
from headway.gateway.openai.found_fields import FoundFields
from headway.gateway.openai.large_body import LargeBody
from headway.gateway.openai.model_name import content_coding, named_model
from headway.gateway.openai.prompt_count import NO_PROMPT, PromptCount, PromptFacts
from headway.gateway.openai.request_body import LARGE_BYTES, Body, read_body, why_unreadable
from headway.gateway.openai.written_model import write_model
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, id_text
from headway.gateway.relay.exchange import BROKE, Exchange
from headway.gateway.relay.keep_alives import KeepAlives
from headway.gateway.replicas.model_lists import all_list_models
from headway.gateway.settings import TenantSettings
from headway.gateway.signed_tokens import KeyFault
from headway.gateway.trusted_sources import TrustedProxies, is_loopback, leads_here
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import Headers, HttpRequest, Response, with_headers
from headway.gateway.wire.request_target import ALLOWED_METHODS
from headway.gateway.wire.sliced_answer import SlicedAnswer
from headway.gateway.wire.stepped_answer import SteppedAnswer, StepsInTurn

_COMPRESSED = "the body is compressed (content-encoding: {}), so its model cannot be read; send it as it is"
_ONE_MODEL = "/v1/models/"
_REQUESTS_SHOWN = 50


class PublicRoutes:
    """The public address: the OpenAI API, health, and (without an address of their own) metrics and the live page."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tenants: ApiKeys,
        administration: Administration,
        metrics: GatewayMetrics,
        history: RequestHistory,
        intake: Intake,
        prompt_count: PromptCount,
        on_arrival: Sequence[Callable[[GatewayRequest], None]],
        learned: LearnedState,
        refusal_log: RefusalLog,
        via: bytes,
        *,
        has_admin: bool,
    ) -> None:
        """`via` is this gateway's name in the requests that it passes on; `has_admin`: there is an admin address."""
        self.dispatcher = dispatcher
        self.tenants = tenants
        self.administration = administration
        self.history = history
        self.metrics = metrics
        self._intake = intake
        self._prompt_count = prompt_count
        self._steps_in_turn = StepsInTurn()
        self.keep_alives = KeepAlives(
            dispatcher.now,
            lambda: dispatcher.settings.queue.keep_alive_seconds,
            lambda exchange, error: dispatcher.contain(exchange, "keep-alive", error),
        )
        self._on_arrival = on_arrival
        self._has_admin = has_admin
        self.learned = learned
        self.refusal_log = refusal_log
        self.via = via
        self._is_on_loopback = is_loopback(dispatcher.settings.listen)
        self.trusted_proxies = TrustedProxies(dispatcher.settings.trusted_proxies)
        self.is_leaving = False  # the address closes soon, which `/ready` shows; requests are still taken

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        """The response to a request that is not valid HTTP or too large; the page that sent it may read it."""
        origin = next((value for name, value in headers if name == b"origin"), None)
        return with_headers(bad_request(status, message), self._cross_origin(origin).headers)

    def _cross_origin(self, origin: bytes | None) -> CrossOrigin:
        settings = self.dispatcher.settings
        return judge_origin(origin, settings.cors_origins, needs_key=bool(settings.tenant))

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
        if request.was_passed_on(self.via):
            return loop()
        if not is_of_the_api(request.path):
            is_here = is_admin(request.path) and not self._has_admin
            return self.administration.refuse_head(request) if is_here else None
        page = self._cross_origin(request.named.get(b"origin"))
        request.reply_headers = page.headers
        refusal = self._refusal_of_head(request, page)
        return None if refusal is None else with_headers(refusal, page.headers)

    def _refusal_of_head(self, request: HttpRequest, page: CrossOrigin) -> Response | None:
        if request.method == b"OPTIONS" and is_preflight(request):
            return None if page.may_read else foreign_page()
        tenant = self.tenants.holder_of(request)
        if isinstance(tenant, KeyFault):
            return no_key(tenant)
        request.owner = tenant.name
        refusal = not_forwarded(request, self.dispatcher.settings.forward) or repeated_term(request)
        if refusal is None and request.method == b"POST":
            request.refusal = self.dispatcher.entry_checks.refusal_unread(tenant.name, request)
        return refusal

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
        self.metrics.rejected(response.status, reason_of(response))
        self.refusal_log.rejected(response, address)

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
        if request.method == b"OPTIONS" and is_of_the_api(path) and is_preflight(request):
            client.respond(preflight_answer(request))
        elif path == "/v1/models" and request.method in (b"GET", b"HEAD"):
            client.respond(models_answer(self.dispatcher))
        elif (
            path.startswith(_ONE_MODEL)
            and request.method in (b"GET", b"HEAD")
            and all_list_models(self.dispatcher.replicas)
        ):
            client.respond(model_answer(self.dispatcher, unquote(path.removeprefix(_ONE_MODEL))))
        elif is_of_the_api(path):
            return self._proxy(request, client)
        elif is_admin(path) and not self._has_admin:
            client.respond(self.administration.answer(request, client.address))
        else:
            # All tenants' traffic: with keys, which a reload may bring, it is on the admin address or nowhere.
            paths = HEALTH_PATHS if self._has_admin or self.dispatcher.settings.tenant else _ALL_PATHS
            return send(client, own_answer(self, request, paths, "the API is under /v1/"))
        return None

    # Through the queue

    def _proxy(self, http: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        tenant = self.tenants.holder_of(http)
        if isinstance(tenant, KeyFault):  # the keys were changed between head and body
            self._reject(client, no_key(tenant))
            return None
        if http.method == b"HEAD":
            self._reject(client, head_not_forwarded())
            return None
        if http.refusal is not None:
            return self._take(http, client, tenant, endpoint_of(http.path), None, NO_PROMPT, "")
        coding = content_coding(http)
        if coding:
            message = _COMPRESSED.format(coding.decode("latin-1")[:40])
            self._reject(client, error_response(415, message, Reason.MALFORMED))
            return None
        endpoint = endpoint_of(http.path)
        if len(http.body) > LARGE_BYTES:
            return self._read_large(http, client, tenant, endpoint)
        body = read_body(http.body, endpoint) if http.body else None
        if body is None and endpoint.needs_json and http.method == b"POST":
            self._reject(client, error_response(400, why_unreadable(http.body, endpoint), Reason.MALFORMED))
            return None
        asked_model = "" if body is None else self.dispatcher.model_choice.rename(body)
        prompt = NO_PROMPT if body is None else self._prompt_count.read(body)
        return self._take(http, client, tenant, endpoint, body, prompt, asked_model)

    def _read_large(
        self, http: HttpRequest, client: ClientConnection, tenant: TenantSettings, endpoint: Endpoint
    ) -> PendingAnswer:
        """Read a large body, a step at each turn of the event loop; then the same as for any other."""
        choice = self.dispatcher.model_choice
        found = http.fields = FoundFields()

        def look() -> Iterator[None]:
            return found.look(http, lambda: bool(tenant.name) or choice.may_rename(named_model(http, None)))

        values_max = self.dispatcher.settings.wire.body_values
        read = LargeBody(http.body, endpoint, values_max, choice.rename, found, look)

        def broke(error: Exception) -> None:
            self.dispatcher.errors.contained("routes", error)
            client.break_off(error_response(500, BROKE, Reason.INTERNAL_ERROR))

        def then() -> PendingAnswer | None:
            needs_json = endpoint.needs_json and http.method == b"POST"
            fault = read.fault
            if fault is None and read.body is None and needs_json:
                fault = 400, "the body is not a JSON object; send one"
            if fault is not None and (needs_json or fault[0] != HTTPStatus.BAD_REQUEST):
                self._reject(client, error_response(*fault, Reason.MALFORMED))
                return None
            return self._take(http, client, tenant, endpoint, read.body, read.prompt, read.asked_model)

        answer = SteppedAnswer(read.steps(self._prompt_count), then, broke)
        self._steps_in_turn.add(answer)
        return answer

    def _take(
        self,
        http: HttpRequest,
        client: ClientConnection,
        tenant: TenantSettings,
        endpoint: Endpoint,
        body: Body | None,
        prompt: PromptFacts,
        asked_model: str,
    ) -> PendingAnswer | None:
        """A request whose body was read enters the queue. `asked_model` is the model that its client wrote there."""
        try:
            terms = read_terms(http, body)
        except ValueError as error:
            self._reject(client, error_response(400, str(error), Reason.MALFORMED))
            return None
        http.client_address = client.address
        http.keeps_forwarded = self.trusted_proxies.holds(client.address)
        if tenant.name:  # the key is the gateway's: no replica sees it
            http.change_headers([pair for pair in http.headers if pair[0] not in KEY_HEADERS])
        model = named_model(http, body)
        if body is None:  # a form, or nothing that can be read
            asked_model, model = model, self.dispatcher.model_choice.choose(model)
            if model != asked_model:
                write_model(http, model)
        settings = self.dispatcher.settings
        request = self._intake.take(http, endpoint, body, prompt, model, asked_model, tenant, terms, settings)
        for note_arrival in self._on_arrival:
            note_arrival(request)
        exchange = Exchange(request, client, self.dispatcher)
        if request.arrived.streams and endpoint.is_generation:
            self.keep_alives.add(exchange)
        try:
            is_taken = self.dispatcher.announce(exchange)
            if is_taken and isinstance(http.refusal, Refusal):
                exchange.refuse(http.refusal)
            elif is_taken:
                self._intake.let_in(request, partial(self.dispatcher.arrive, exchange))
        except Exception as error:
            self.dispatcher.contain(exchange, "intake", error)
        return exchange

    def _reject(self, client: ClientConnection, response: Response) -> None:
        self.refused(response, client.address)
        client.respond(response)


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
        return error_response(404, f"unknown path {request.path}; {otherwise}", Reason.MALFORMED)
    return answer(routes, request)


def _health(routes: PublicRoutes, request: HttpRequest) -> Response:
    return Response(200, b'{"status":"ok"}')


def _ready(routes: PublicRoutes, request: HttpRequest) -> Response:
    dispatcher = routes.dispatcher
    up = sum(replica.is_up for replica in dispatcher.replicas)
    drained = sum(replica.is_drained for replica in dispatcher.replicas)
    is_leaving = routes.is_leaving or dispatcher.is_draining
    ready = up > 0 and not is_leaving
    body = json.dumps({"ready": ready, "replicas_up": up, "replicas_drained": drained, "draining": is_leaving}).encode()
    return Response(200 if ready else 503, body)


def _version(routes: PublicRoutes, request: HttpRequest) -> Response:
    return _json({"version": __version__})


def _metrics(routes: PublicRoutes, request: HttpRequest) -> Response | Iterator[bytes]:
    return Response(200, b"", CONTENT_TYPE) if request.method == b"HEAD" else routes.metrics.slices()


def _state(routes: PublicRoutes, request: HttpRequest) -> Response:
    state = state_of(
        routes.dispatcher, routes.metrics.fairness(), routes.history.latest(_REQUESTS_SHOWN), routes.learned.tuned
    )
    return Response(200, json.dumps(state).encode(), headers=((b"cache-control", b"no-store"),))


def _why(routes: PublicRoutes, request: HttpRequest) -> Response:
    wanted = id_text(unquote_to_bytes(request.target.partition(b"?id=")[2]))
    entry = routes.history.find(wanted)
    if entry is None:
        return error_response(404, f"no such request among the latest {REMEMBERED:,}", Reason.MALFORMED)
    return _json(entry)


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
"""All tenants' traffic: on the admin address; on the public one if neither admin address nor keys are configured."""

_ALL_PATHS: Mapping[str, OwnAnswer] = MappingProxyType({**HEALTH_PATHS, **INSIDE_PATHS})
ADMIN_PATHS: Mapping[str, OwnAnswer] = MappingProxyType({"/health": _health, "/ready": _ready, **INSIDE_PATHS})
"""Answered on the admin address."""
