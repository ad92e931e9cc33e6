"""Routes of the API: a request of a listed path is checked, read and put into the queue, whichever way it came here.

Clients come over a connection of ours (`wire/client_connection.py`), or over Envoy (`epp/picker_stream.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Protocol, TypeAlias
from urllib.parse import unquote

from headway.gateway.api_keys import KEY_HEADERS, ApiKeys
from headway.gateway.batch_api.batch_routes import BatchRoutes, is_of_batch_api
from headway.gateway.batch_api.line_client import LineClient
from headway.gateway.cross_origin import CrossOrigin, is_preflight, judge_origin, preflight_answer
from headway.gateway.head_refusals import (
    foreign_page,
    head_not_forwarded,
    loop,
    no_key,
    not_forwarded,
    repeated_term,
)
from headway.gateway.model_answers import model_answer, models_answer
from headway.gateway.observing.gateway_metrics import GatewayMetrics
from headway.gateway.observing.refusal_log import RefusalLog
from headway.gateway.openai.client_terms import read_terms
from headway.gateway.openai.endpoints import Endpoint, endpoint_of
from headway.gateway.openai.error_responses import Reason, error_response, reason_of
from headway.gateway.openai.found_fields import FoundFields
from headway.gateway.openai.large_body import LargeBody
from headway.gateway.openai.model_name import content_coding, named_model
from headway.gateway.openai.prompt_count import NO_PROMPT, PromptCount, PromptFacts
from headway.gateway.openai.request_body import LARGE_BYTES, Body, read_body, why_unreadable
from headway.gateway.openai.written_model import write_model
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.exchange import BROKE, Exchange
from headway.gateway.relay.keep_alives import KeepAlives
from headway.gateway.relay.picked_exchange import PickedExchange
from headway.gateway.replicas.model_lists import all_list_models
from headway.gateway.settings import TenantSettings
from headway.gateway.signed_tokens import KeyFault
from headway.gateway.trusted_sources import TrustedProxies
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import HttpRequest, Response, with_headers
from headway.gateway.wire.stepped_answer import SteppedAnswer, StepsInTurn

_COMPRESSED = "the body is compressed (content-encoding: {}), so its model cannot be read; send it as it is"
_ONE_MODEL = "/v1/models/"


class ProxiedClient(Protocol):
    """A client without a connection of ours: a proxy carries its bytes, or it is inside this process."""

    @property
    def address(self) -> str:
        """Of the client, as far as the proxy tells it."""

    def respond(self, response: Response) -> None:
        """A whole answer at once."""

    def break_off(self, response: Response) -> None:
        """End the request after an internal error: `response` if nothing was sent yet, else a cut."""

    def exchange(self, request: GatewayRequest) -> PickedExchange | Exchange:
        """What carries its request."""


Client: TypeAlias = ClientConnection | ProxiedClient


class ApiRoutes:
    """One per process. `tenants` and `trusted_proxies` may be replaced while it runs."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tenants: ApiKeys,
        metrics: GatewayMetrics,
        intake: Intake,
        prompt_count: PromptCount,
        on_arrival: Sequence[Callable[[GatewayRequest], None]],
        refusal_log: RefusalLog,
        via: bytes,
    ) -> None:
        """`via` is this gateway's name in the requests that it passes on."""
        self.dispatcher = dispatcher
        self.tenants = tenants
        self.metrics = metrics
        self.refusal_log = refusal_log
        self.via = via
        self._intake = intake
        self._prompt_count = prompt_count
        self._steps_in_turn = StepsInTurn()
        self.keep_alives = KeepAlives(
            dispatcher.now,
            lambda: dispatcher.settings.queue.keep_alive_seconds,
            lambda exchange, error: dispatcher.contain(exchange, "keep-alive", error),
        )
        self._on_arrival = on_arrival
        self.batches: BatchRoutes | None = None  # where the gateway has a Batch API of its own
        self.trusted_proxies = TrustedProxies(dispatcher.settings.trusted_proxies)

    def cross_origin(self, origin: bytes | None) -> CrossOrigin:
        """What a web page of this origin may do, if one sends the request."""
        settings = self.dispatcher.settings
        return judge_origin(origin, settings.cors_origins, needs_key=bool(settings.tenant))

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """What needs no body is refused before it is read: a request of ours, a wrong key, an unlisted path."""
        if request.was_passed_on(self.via):
            return loop()
        page = self.cross_origin(request.named.get(b"origin"))
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
        if refusal is None and self.batches is not None and is_of_batch_api(request.path):
            return self._standby() or self.batches.refuse_head(request)
        if refusal is None and request.method == b"POST":
            request.refusal = self.dispatcher.entry_checks.refusal_unread(tenant.name, request)
        return refusal

    def _standby(self) -> Response | None:
        """Another gateway is active: what is in the folder here is not what that one has."""
        if self.dispatcher.served_queues.may_serve():
            return None
        status, message, reason, seconds, _ = self.dispatcher.entry_checks.standby()
        return error_response(status, message, reason, retry_seconds=seconds)

    def refused(self, response: Response, address: str) -> None:
        """Count it: it entered no queue, and no explanation of it is kept."""
        self.metrics.rejected(response.status, reason_of(response))
        self.refusal_log.rejected(response, address)

    def answer(self, request: HttpRequest, client: Client) -> PendingAnswer | None:
        """At once where the answer is the gateway's own, else through the queue."""
        path = request.path
        if request.method == b"OPTIONS" and is_preflight(request):
            client.respond(preflight_answer(request))
        elif path == "/v1/models" and request.method in (b"GET", b"HEAD"):
            client.respond(models_answer(self.dispatcher))
        elif (
            path.startswith(_ONE_MODEL)
            and request.method in (b"GET", b"HEAD")
            and all_list_models(self.dispatcher.replicas)
        ):
            client.respond(model_answer(self.dispatcher, unquote(path.removeprefix(_ONE_MODEL))))
        elif self.batches is not None and is_of_batch_api(path):
            return self._answer_batches(self.batches, request, client)
        else:
            return self._proxy(request, client)
        return None

    def _answer_batches(self, batches: BatchRoutes, request: HttpRequest, client: Client) -> PendingAnswer | None:
        if isinstance(client, ClientConnection):
            return batches.answer(request, client, partial(self._broke, client))
        message = "files and batches are not served through Envoy; ask the gateway's own address"
        self._reject(client, error_response(501, message, Reason.MALFORMED))
        return None

    def submit(self, request: HttpRequest, client: LineClient, tenant: str) -> bool:
        """Take a request from inside this process as one of this tenant; False if none of the name is configured."""
        if not self.tenants.vouch(request, tenant):
            return False
        try:
            client.wait_for(self.answer(request, client))
        except Exception as error:
            self._broke(client, error)
        return True

    def _broke(self, client: Client, error: Exception) -> None:
        """An exception passed through one request: it alone ends."""
        self.dispatcher.errors.contained("routes", error)
        client.break_off(error_response(500, BROKE, Reason.INTERNAL_ERROR))

    # Through the queue

    def _proxy(self, http: HttpRequest, client: Client) -> PendingAnswer | None:
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
        self, http: HttpRequest, client: Client, tenant: TenantSettings, endpoint: Endpoint
    ) -> PendingAnswer:
        """Read a large body, a step at each turn of the event loop; then the same as for any other."""
        choice = self.dispatcher.model_choice
        found = http.fields = FoundFields()

        def look() -> Iterator[None]:
            return found.look(http, lambda: bool(tenant.name) or choice.may_rename(named_model(http, None)))

        values_max = self.dispatcher.settings.wire.body_values
        read = LargeBody(http.body, endpoint, values_max, choice.rename, found, look)

        def then() -> PendingAnswer | None:
            needs_json = endpoint.needs_json and http.method == b"POST"
            fault = read.fault
            if fault is None and read.body is None and needs_json:
                fault = 400, "the body is not a JSON object; send one"
            if fault is not None and (needs_json or fault[0] != HTTPStatus.BAD_REQUEST):
                self._reject(client, error_response(*fault, Reason.MALFORMED))
                return None
            return self._take(http, client, tenant, endpoint, read.body, read.prompt, read.asked_model)

        answer = SteppedAnswer(read.steps(self._prompt_count), then, partial(self._broke, client))
        self._steps_in_turn.add(answer)
        return answer

    def _take(
        self,
        http: HttpRequest,
        client: Client,
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
        exchange = self._exchange(request, client)
        try:
            is_taken = self.dispatcher.announce(exchange)
            if is_taken and isinstance(http.refusal, Refusal):
                exchange.refuse(http.refusal)
            elif is_taken:
                self._intake.let_in(request, partial(self.dispatcher.arrive, exchange))
        except Exception as error:
            self.dispatcher.contain(exchange, "intake", error)
        return exchange

    def _exchange(self, request: GatewayRequest, client: Client) -> Exchange | PickedExchange:
        if not isinstance(client, ClientConnection):
            return client.exchange(request)
        exchange = Exchange(request, client, self.dispatcher)
        if request.arrived.streams and request.arrived.endpoint.is_generation:
            self.keep_alives.add(exchange)
        return exchange

    def _reject(self, client: Client, response: Response) -> None:
        self.refused(response, client.address)
        client.respond(response)
