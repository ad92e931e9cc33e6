"""Picture of the waiting requests: how many there are of each prompt length and age."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice

from headway.gateway.observing.hour_series import LENGTH_CLASSES, length_class
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import RequestStage

_AGE_BOUNDS = (1.0, 10.0, 60.0, 600.0)  # seconds
_AGES = ("below 1 s", "1 to 10 s", "10 to 60 s", "1 to 10 min", "10 min and more")
_LOOKED_AT_MAX = 4_000  # requests: some milliseconds of the event loop
_QUEUED = RequestStage.QUEUED


def waiting_picture(dispatcher: Dispatcher) -> dict[str, object]:
    """As JSON: `requests[length][age]`, with the words of both, and the age of the oldest in seconds.

    Of more requests than can be looked at, every second, third, … is counted twice, three times, …: `counted_each`.
    """
    relays, now = dispatcher.relays, dispatcher.now()
    each = max(1, -(-len(relays) // _LOOKED_AT_MAX))
    requests = [[0] * len(_AGES) for _ in LENGTH_CLASSES]
    oldest = None
    for relay in islice(relays.values(), 0, None, each):
        request = relay.request
        if request.stage is _QUEUED:
            age = now - request.arrived.arrived_at
            requests[length_class(request.queued.prompt_tokens)][bisect_right(_AGE_BOUNDS, age)] += each
            oldest = age if oldest is None else max(oldest, age)
    return {
        "lengths": LENGTH_CLASSES,
        "ages": _AGES,
        "requests": requests,
        "oldest_seconds": oldest,
        "counted_each": each,
    }
