"""Messages between the routers of a Ray Serve deployment and the actor that holds its queue.

Plain values that pickle. A router sends its news, several requests in one call, and gets verdicts: at once, or when it
waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from headway.gateway.openai.prompt_count import NO_PROMPT, PromptFacts
from headway.gateway.queueing.counts import Outcome

HeaderPairs: TypeAlias = Sequence[tuple[bytes, bytes]]
ENTERED_MAX = 200
"""Requests that enter with one message: about 10 ms of the actor's event loop."""


class RequestFacts(NamedTuple):
    """What the queue gets to know of a request.

    Attributes:
        path: of the API it belongs to, for example `/v1/chat/completions`; it says how `head` is read.
        headers: hints, terms, key and request id, names in lower case.
        head: its JSON body without the prompt.
        body_bytes: of the whole body.
        prompt: what was read of its prompt.
        tenant: name of its tenant, if the application itself says whose it is.
        is_trusted: its hints are the application's own words, and no client's.
        adapter: model that it wants multiplexed; "" for none.
    """

    path: str = "/v1/completions"
    headers: HeaderPairs = ()
    head: bytes = b"{}"
    body_bytes: int = 0
    prompt: PromptFacts = NO_PROMPT
    tenant: str = ""
    is_trusted: bool = False
    adapter: str = ""


class QueueEntry(NamedTuple):
    """A request that enters the queue. `number` is its router's."""

    number: int
    facts: RequestFacts


class Rejection(NamedTuple):
    """A replica did not take a request: it had `ongoing_requests` already, or None if it is not known.

    `facts` are for a queue that is new and does not know the request.
    """

    number: int
    ongoing_requests: int | None
    facts: RequestFacts


class End(NamedTuple):
    """A request ended, waiting or at its replica."""

    number: int
    outcome: Outcome


class ServeReplica(NamedTuple):
    """A replica as Ray Serve tells its routers of it.

    Attributes:
        name: its unique id.
        requests_max: its `max_ongoing_requests`.
        adapters: models that it has loaded, of those that are multiplexed.
    """

    name: str
    requests_max: int
    adapters: tuple[str, ...] = ()


class LostKind(StrEnum):
    """What happened to a replica, by what its router saw."""

    DIED = "died"
    UNAVAILABLE = "unavailable"


class RouterNews(NamedTuple):
    """All that a router has to tell, in the order in which it happened within each field.

    Attributes:
        router: its name, unique in the cluster.
        entered: requests that enter.
        rejected: requests that their replicas did not take; they wait again, in front.
        ended: requests that ended.
        replicas: all replicas that it knows, where that changed; else None.
        lost: replicas that died or could not be reached.
    """

    router: str
    entered: Sequence[QueueEntry] = ()
    rejected: Sequence[Rejection] = ()
    ended: Sequence[End] = ()
    replicas: Sequence[ServeReplica] | None = None
    lost: Sequence[tuple[str, LostKind]] = ()


class Greeting(NamedTuple):
    """A router that the queue does not know, with its requests that run at replicas: number -> replica."""

    router: str
    replicas: Sequence[ServeReplica]
    running: Sequence[tuple[int, str]] = ()


class RefusedRequest(NamedTuple):
    """An error instead of a replica. `retry_seconds` is None where no retry helps."""

    status: int
    message: str
    reason: str
    retry_seconds: float | None


class RouteVerdict(NamedTuple):
    """Where a request goes: to a replica, or back to its client."""

    number: int
    replica: str = ""
    refusal: RefusedRequest | None = None
