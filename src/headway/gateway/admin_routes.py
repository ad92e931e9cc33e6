"""Routes of the admin address: metrics, the live page, health and `/admin`; `routes.py` has those of the public one."""

from __future__ import annotations

from headway.gateway.administration import is_admin, takes_body
from headway.gateway.head_refusals import foreign_host, loop
from headway.gateway.openai.error_responses import Reason, bad_request, error_response
from headway.gateway.relay.exchange import BROKE
from headway.gateway.routes import ADMIN_PATHS, HEALTH_PATHS, PublicRoutes, own_answer, send
from headway.gateway.trusted_sources import is_loopback, leads_here
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.messages import Headers, HttpRequest, Response, with_headers


class AdminRoutes:
    """The admin address: metrics, the live page, health and `/admin`, and nothing of the API."""

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        """The response to a request that is not valid HTTP or too large."""
        return bad_request(status, message)

    def __init__(self, public: PublicRoutes) -> None:
        self._public = public
        self._is_on_loopback = is_loopback(public.dispatcher.settings.admin_listen)

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """Where there is a key, all but health needs it: as a bearer, or as the password that a browser asks for."""
        if request.was_passed_on(self._public.api.via):
            return loop()
        keys, hosts = self._public.administration.keys, self._public.dispatcher.settings.hosts
        if not keys.needs_key and self._is_on_loopback and not leads_here(request.header(b"host"), hosts):
            return foreign_host()
        if is_admin(request.path):
            return self._public.administration.refuse_head(request)
        if request.path in HEALTH_PATHS or keys.reads(request.header(b"authorization")):
            return None
        refusal = error_response(401, "the admin address needs its key (`admin_key_env`)", Reason.UNAUTHORISED)
        return with_headers(refusal, ((b"www-authenticate", b'Basic realm="headway"'),))

    def shaped(self, response: Response, path: str) -> Response:
        """The response itself."""
        return response

    def takes_body(self, request: HttpRequest) -> bool:
        """Whether it is needed for the answer."""
        return takes_body(request)

    def refused(self, response: Response, address: str) -> None:
        """Log it. It is not counted: metrics count the public address only."""
        self._public.refusal_log.rejected(response, address)

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Every path is answered at once."""
        try:
            if is_admin(request.path):
                return send(client, self._public.administration.answer(request, client.address))
            return send(client, own_answer(self._public, request, ADMIN_PATHS, "the live page is at /headway/"))
        except Exception as error:
            self._public.dispatcher.errors.contained("routes", error)
            client.break_off(error_response(500, BROKE, Reason.INTERNAL_ERROR))
        return None
