"""Administration under `/admin`: adds and drains replicas, cancels requests, changes budgets. Each change is logged.

Laws: nothing changes by GET; no page of a browser gets in, for a key is sent as a bearer token only and a request that
names its page is refused; no answer holds text of a request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from http import HTTPStatus
from itertools import islice
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from headway.config.typed_values import read_table
from headway.gateway.api_keys import AdminKeys
from headway.gateway.discovery.replica_register import ReplicaRegister
from headway.gateway.openai.error_responses import Reason, error_response, not_found
from headway.gateway.queueing.dispatch_contracts import Relay
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.replica_room import still_ending
from headway.gateway.queueing.request_state import RequestStage, id_text
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import BudgetSettings, ReplicaSettings, TenantSettings
from headway.gateway.settings_file import check_budget, check_replica
from headway.gateway.wire.messages import HttpRequest, Response, with_headers

PATH = "/admin"
_PAGE_REQUESTS, _PAGE_REQUESTS_MAX = 100, 1_000
_BODY_BYTES_MAX = 4_096
_ADDED_MAX = 1_000  # replicas
_NUMBER_MAX = 10**15
_CANCELLED_AT_ONCE = 100  # each takes some 60 us, in which the event loop has no turn
_SHOWN_CHARACTERS_MAX = 200  # of what a client named: a model, a tenant's fairness id
_CANCELLED = Refusal(HTTPStatus.GONE, "an operator cancelled this request", Reason.CANCELLED)
log = logging.getLogger("headway.gateway")


class Administration:
    """Answers `/admin` of one gateway. `keys` may be replaced while it runs."""

    def __init__(self, dispatcher: Dispatcher, keys: AdminKeys, register: ReplicaRegister) -> None:
        self._dispatcher = dispatcher
        self._register = register
        self.keys = keys

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """Why a request under `/admin` is not answered, as far as its head tells; None if it is."""
        if not self.keys.may_change:
            return _error(404, f"{PATH} needs keys of its own, and there are none; its operator can set `[admin]`")
        if request.header(b"origin") is not None:
            return _error(403, f"web pages may not use {PATH}")
        if self.keys.changes(request.header(b"authorization")) is None:
            message = f"{PATH} needs one of its keys (`[admin]`) as `Authorization: Bearer KEY`"
            refusal = error_response(401, message, Reason.UNAUTHORISED)
            return with_headers(refusal, ((b"www-authenticate", b'Bearer realm="headway admin"'),))
        found = _found(request)
        if found is None:
            return _error(404, f"unknown path {request.path[:_SHOWN_CHARACTERS_MAX]}; there are {', '.join(_VERBS)}")
        _, methods = found
        if request.method not in methods:
            allowed = b", ".join(sorted(methods))
            message = f"{request.path[:_SHOWN_CHARACTERS_MAX]} takes {allowed.decode()} only"
            return with_headers(_error(405, message), ((b"allow", allowed),))
        if takes_body(request) and _length(request) > _BODY_BYTES_MAX:
            return _error(413, f"the body must state its length, and be at most {_BODY_BYTES_MAX:,} bytes long")
        return None

    def answer(self, request: HttpRequest, address: str) -> Response:
        """The answer to a request that `refuse_head` let pass; `address` is its client's."""
        found, who = _found(request), self.keys.changes(request.header(b"authorization"))
        refusal = self.refuse_head(request)  # the keys may have been replaced since
        if refusal is not None or found is None or who is None:
            return refusal or _error(404, "unknown path")
        name, methods = found
        status, content = methods[request.method](self, name, request)
        if "before" in content:
            fields = {"who": who, "client": address, "path": request.path[:_SHOWN_CHARACTERS_MAX], **content}
            log.warning("administration", extra={"fields": fields})
        return Response(status, msgspec.json.encode(content), headers=((b"cache-control", b"no-store"),))

    # Replicas

    def _replicas(self, name: bytes, request: HttpRequest) -> _Answer:
        dispatcher = self._dispatcher
        leaving = still_ending(dispatcher.relays.values(), dispatcher.replicas)
        return 200, {"replicas": [_replica(replica) for replica in [*dispatcher.replicas, *leaving]]}

    def _add(self, name: bytes, request: HttpRequest) -> _Answer:
        """Add a replica, or replace one that was added. It lasts until it is removed, or the process ends."""
        shown, register = _shown(name), self._register
        try:
            if len(shown) != len(id_text(name)) or not shown.isprintable():
                raise ValueError(f"a name must be printable, and {_SHOWN_CHARACTERS_MAX} characters long at most")
            replica = _described(shown, request.body)
            before = register.added.get(shown)
            if before is None and len(register.added) >= _ADDED_MAX:
                return 409, _error_content(409, f"{_ADDED_MAX:,} replicas are added; remove one, or use a file")
            register.add(shown, replica)
        except ValueError as error:
            return 400, _error_content(400, str(error))
        return 201 if before is None else 200, {"replica": shown, "before": _told(before), "after": _told(replica)}

    def _remove(self, name: bytes, request: HttpRequest) -> _Answer:
        """Remove a replica that was added; it ends the requests that it has."""
        shown, register = id_text(name), self._register
        if shown not in register.added:
            source = register.source_of(shown)
            if source is None:
                return _no_replica(name)
            message = f"{_shown(name)!r} was not added here but comes from {source}; remove it there, or drain it"
            return 409, _error_content(409, message)
        before = register.added[shown]
        register.remove(shown, "an operator removed it")
        return 200, {"replica": shown, "before": _told(before), "after": None}

    def _drain(self, name: bytes, request: HttpRequest) -> _Answer:
        return self._set_drained(name, is_drained=True)

    def _undrain(self, name: bytes, request: HttpRequest) -> _Answer:
        return self._set_drained(name, is_drained=False)

    def _set_drained(self, name: bytes, *, is_drained: bool) -> _Answer:
        replica = next((one for one in self._dispatcher.replicas if one.name == id_text(name)), None)
        if replica is None:
            return _no_replica(name)
        before, replica.is_drained = replica.is_drained, is_drained
        self._dispatcher.pump()
        return 200, {"replica": replica.name, "before": {"drained": before}, "after": {"drained": is_drained}}

    # Requests

    def _requests(self, name: bytes, request: HttpRequest) -> _Answer:
        try:
            after, limit, stage = _page_of(request)
        except ValueError as error:
            return 400, _error_content(400, str(error))
        relays, now = self._dispatcher.relays, self._dispatcher.now()
        wanted = (
            relay
            for number, relay in relays.items()
            if number > after and (stage is None or relay.request.stage is stage)
        )
        page = list(islice(wanted, limit + 1))
        shown = [_request(relay, now) for relay in page[:limit]]
        return 200, {"requests": shown, "next_after": shown[-1]["number"] if len(page) > limit else None}

    def _cancel(self, name: bytes, request: HttpRequest) -> _Answer:
        """Each request that its client named so, so many at once: ids are theirs, and may be there many times."""
        relays = [relay for relay in self._dispatcher.relays.values() if relay.request.arrived.request_id == name]
        if not relays:
            return _not_found(f"no request {_shown(name)!r} is inside; it may have ended")
        now = relays[:_CANCELLED_AT_ONCE]
        stages = [str(relay.request.stage) for relay in now]
        for relay in now:
            try:
                relay.cut_off(_CANCELLED)
            except Exception as error:
                self._dispatcher.contain(relay, "administration", error)
        after = {"cancelled": len(now), "left": len(relays) - len(now)}
        return 200, {"request": _shown(name), "before": {"stages": stages}, "after": after}

    # Budgets

    def _tenant(self, name: bytes) -> TenantSettings | None:
        return next((one for one in self._dispatcher.settings.tenant if one.name == id_text(name)), None)

    def _budget(self, name: bytes, request: HttpRequest) -> _Answer:
        tenant = self._tenant(name)
        if tenant is None:
            return _no_tenant(name)
        return 200, {"tenant": tenant.name, "budget": asdict(tenant.budget)}

    def _change_budget(self, name: bytes, request: HttpRequest) -> _Answer:
        """The limits that the body names, until the next reload; what was used stays used.

        Requests that wait and are within the new ones go over to those that are within a second, by the sweep.
        """
        tenant = self._tenant(name)
        if tenant is None:
            return _no_tenant(name)
        try:
            budget = _changed(tenant.budget, request.body)
        except ValueError as error:
            return 400, _error_content(400, str(error))
        dispatcher = self._dispatcher
        tenants = tuple(replace(one, budget=budget) if one is tenant else one for one in dispatcher.settings.tenant)
        dispatcher.settings = replace(dispatcher.settings, tenant=tenants)
        dispatcher.budgets.change(tenants)
        return 200, {"tenant": tenant.name, "before": asdict(tenant.budget), "after": asdict(budget)}


_Answer: TypeAlias = tuple[int, dict[str, object]]
_Verb: TypeAlias = Callable[[Administration, bytes, HttpRequest], _Answer]


def _reading(verb: _Verb) -> Mapping[bytes, _Verb]:
    return MappingProxyType({b"GET": verb, b"HEAD": verb})


def _changing(verb: _Verb) -> Mapping[bytes, _Verb]:
    return MappingProxyType({b"POST": verb})


_BUDGET: Mapping[bytes, _Verb] = MappingProxyType(
    {**_reading(Administration._budget), b"PATCH": Administration._change_budget}
)
_ADDED: Mapping[bytes, _Verb] = MappingProxyType({b"PUT": Administration._add, b"DELETE": Administration._remove})
_VERBS: Mapping[str, Mapping[bytes, _Verb]] = MappingProxyType(
    {
        f"{PATH}/replicas": _reading(Administration._replicas),
        f"{PATH}/replicas/NAME": _ADDED,
        f"{PATH}/replicas/NAME/drain": _changing(Administration._drain),
        f"{PATH}/replicas/NAME/undrain": _changing(Administration._undrain),
        f"{PATH}/requests": _reading(Administration._requests),
        f"{PATH}/requests/ID/cancel": _changing(Administration._cancel),
        f"{PATH}/tenants/NAME/budget": _BUDGET,
    }
)
_PATTERNS = tuple((re.compile(re.sub("NAME|ID", "([^/]+)", path)), methods) for path, methods in _VERBS.items())


def takes_body(request: HttpRequest) -> bool:
    """Whether the body of a request under `/admin` is read."""
    return is_admin(request.path) and request.method in (b"PATCH", b"PUT")


def is_admin(path: str) -> bool:
    """Whether a path is `/admin` or below it."""
    return path == PATH or path.startswith(f"{PATH}/")


def _found(request: HttpRequest) -> tuple[bytes, Mapping[bytes, _Verb]] | None:
    """What the path names, decoded, and the methods that it takes."""
    for pattern, methods in _PATTERNS:
        match = pattern.fullmatch(request.path)
        if match is not None:
            return unquote_to_bytes("".join(match.groups()).encode("latin-1")), methods
    return None


def _shown(name: bytes) -> str:
    return id_text(name)[:_SHOWN_CHARACTERS_MAX]


def _length(request: HttpRequest) -> int:
    """Of its body, in bytes; too long where the head does not say it."""
    stated = request.header(b"content-length")
    return _BODY_BYTES_MAX + 1 if stated is None else int(stated)


def _page_of(request: HttpRequest) -> tuple[int, int, RequestStage | None]:
    """Number of the request before the page, requests on it, and the stage that is wanted. Raises ValueError."""
    given = dict(parse_qsl(request.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))
    unknown = given.keys() - {"after", "limit", "stage"}
    if unknown:
        raise ValueError("there are the parameters after, limit and stage, and no other")
    after = _whole("after", given.get("after", "0"), 0, _NUMBER_MAX)
    limit = _whole("limit", given.get("limit", str(_PAGE_REQUESTS)), 1, _PAGE_REQUESTS_MAX)
    stage = given.get("stage")
    stages = {str(one): one for one in RequestStage if one is not RequestStage.ENDED}
    if stage is not None and stage not in stages:
        raise ValueError(f"stage must be one of {', '.join(stages)}")
    return after, limit, None if stage is None else stages[stage]


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}")
    return int(text)


def _changed(before: BudgetSettings, body: bytes) -> BudgetSettings:
    """A budget with the limits of a JSON object; null takes a limit away. Raises ValueError, one sentence."""
    given = _object(body, "[tenant.budget]", '{"tokens_per_minute": 1000}')
    after = read_table(BudgetSettings, {**asdict(before), **given}, "budget.")
    check_budget("budget", after)
    return after


def _described(name: str, body: bytes) -> ReplicaSettings:
    """The replica that a JSON object describes. Raises ValueError, one sentence."""
    given = _object(body, "[[replica]]", '{"url": "http://10.0.0.5:8000"}')
    if given.get("name", name) != name:
        raise ValueError("the name is what the path ends with; leave it out of the body")
    replica = read_table(ReplicaSettings, {**given, "name": name})
    check_replica("replica", replica)
    return replica


def _object(body: bytes, table: str, example: str) -> dict[str, object]:
    """The JSON object that a body is. Raises ValueError, one sentence."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    if not isinstance(given, dict) or not given:
        raise ValueError(f"the body must be a JSON object with keys of `{table}`, as {example}")
    return given


def _told(replica: ReplicaSettings | None) -> dict[str, object] | None:
    return None if replica is None else {"url": replica.url, "max_requests": replica.max_requests}


def _replica(replica: UpstreamReplica) -> dict[str, object]:
    return {
        "name": replica.name,
        "source": replica.source,
        "health": str(replica.state.health),
        "drained": replica.is_drained,
        "requests": replica.ledger.requests,
        "requests_max": replica.ledger.requests_max,
    }


def _request(relay: Relay, now: float) -> dict[str, object]:
    """Lengths, times and names of a request, and none of its text."""
    arrived, queued = relay.request.arrived, relay.request.queued
    return {
        "number": arrived.number,
        "id": id_text(arrived.request_id),
        "stage": str(relay.request.stage),
        "tenant": arrived.tenant[:_SHOWN_CHARACTERS_MAX],
        "model": arrived.model[:_SHOWN_CHARACTERS_MAX],
        "priority": arrived.priority,
        "prompt_tokens": queued.prompt_tokens,
        "output_tokens": relay.request.relayed.output_tokens,
        "age_seconds": round(now - arrived.arrived_at, 6),
        "replica": queued.replica.name if queued.replica is not None else None,
    }


def _error(status: int, message: str) -> Response:
    return not_found(message) if status == HTTPStatus.NOT_FOUND else error_response(status, message, Reason.MALFORMED)


def _error_content(status: int, message: str) -> dict[str, object]:
    content: dict[str, object] = msgspec.json.decode(_error(status, message).body)
    return content


def _no_tenant(name: bytes) -> _Answer:
    return _not_found(f"no tenant is named {_shown(name)!r}; the configuration lists them")


def _no_replica(name: bytes) -> _Answer:
    return _not_found(f"no replica is named {_shown(name)!r}; GET {PATH}/replicas lists them")


def _not_found(message: str) -> _Answer:
    return 404, _error_content(404, message)
