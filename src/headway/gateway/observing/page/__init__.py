"""Live page at /headway/: queues, replicas, refusals and why requests waited. Plain files, no build, no network."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from headway.gateway.observing.waiting_picture import waiting_picture
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.replica_room import still_ending
from headway.gateway.queueing.request_state import QueueKey
from headway.gateway.replicas.kv_event_subscription import COUNT_NAMES
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import Response
from headway.policies.contracts import LaneId

_FILES = {
    "/headway/": ("live.html", b"text/html; charset=utf-8"),
    "/headway/live.css": ("live.css", b"text/css; charset=utf-8"),
    "/headway/live.js": ("live.js", b"text/javascript; charset=utf-8"),
    "/headway/live_charts.js": ("live_charts.js", b"text/javascript; charset=utf-8"),
}
_QUEUES_SHOWN = 200
_SHOWN = 10  # lanes and tenants, the largest
_SAFE = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


PAGE_PATHS = tuple(_FILES)


def page_file(path: str) -> Response:
    """A file of the page, by one of `PAGE_PATHS`."""
    name, content_type = _FILES[path]
    return Response(200, files(__package__).joinpath(name).read_bytes(), content_type, _SAFE)


def to_the_page() -> Response:
    """From `/headway`: addresses on the page are relative to `/headway/`, whatever path a proxy puts before it."""
    return Response(308, b"", b"text/plain", (*_SAFE, (b"location", b"headway/")))


def state_of(
    dispatcher: Dispatcher,
    fairness: float | None,
    stories: Sequence[dict[str, object]],
    tuned: Callable[[QueueKey], Mapping[str, float] | None],
) -> dict[str, object]:
    """What the page shows, as JSON.

    `stories` are the latest requests; `tuned` gives a queue's tuned values, None where nothing is tuned.
    """
    counts, leaving = dispatcher.counts, still_ending(dispatcher.relays.values(), dispatcher.replicas)
    return {
        "draining": dispatcher.is_draining,
        "policies": {
            kind: getattr(dispatcher.settings.policies, kind)
            for kind in ("ordering", "admission", "prediction", "routing")
        },
        "counts": {
            "arrived": counts.arrived,
            "inside": counts.inside,
            "retried": counts.retried,
            **{str(outcome): counts.ended[outcome] for outcome in Outcome},  # zeros too: a reader needs no default
        },
        "reasons": {str(reason): number for reason, number in counts.reasons.items()},
        "waiting_picture": waiting_picture(dispatcher),
        "lines": [_queue(queue) | {"tuned": tuned(queue.key)} for queue in _longest(dispatcher)],
        "replicas": [_replica(replica) for replica in [*dispatcher.replicas, *leaving]],
        "fairness": fairness,
        "stories": list(stories),
    }


def _longest(dispatcher: Dispatcher) -> Sequence[ModelQueue]:
    """All queues, or as many of the longest as a reader can take in and the event loop can write down at one turn."""
    queues = list(dispatcher.queues.values())
    return queues if len(queues) <= _QUEUES_SHOWN else heapq.nlargest(_QUEUES_SHOWN, queues, key=len)


def _queue(queue: ModelQueue) -> dict[str, object]:
    most = heapq.nlargest(_SHOWN, queue.waiting_by_payer.items(), key=lambda entry: entry[1].requests)
    sizes, heads = queue.scheduler.queue.lane_sizes(), queue.scheduler.queue.lane_heads()
    lanes = heapq.nlargest(_SHOWN, sizes.items(), key=lambda entry: entry[1])
    return {
        "model": queue.key.model or "any",
        "kind": _kind_of(queue.key),
        "waiting": len(queue),
        "waiting_offline": len(queue.scheduler.queue.offline),
        "waiting_tokens": queue.waiting.tokens,
        "drain_seconds": queue.drain_seconds(),
        "lanes_in_all": len(sizes),
        "lanes": [
            {
                "name": _lane_name(lane),
                "requests": requests,
                "first_prompt_tokens": heads[lane].prompt_tokens if lane in heads else None,
            }
            for lane, requests in lanes
        ],
        "tenants": {payer: sums.requests for payer, sums in most},
    }


def _lane_name(lane: LaneId) -> str:
    """The tenant or adapter that a lane is of, "" without one: an ordering's numbers say nothing to a reader."""
    if isinstance(lane, tuple):
        return " / ".join(filter(None, map(_lane_name, lane)))
    return lane if isinstance(lane, str) else ""


def _replica(replica: UpstreamReplica) -> dict[str, object]:
    ledger, report, ages = replica.ledger, replica.state.report, replica.ages_seconds()
    return {
        "name": replica.name,
        "source": replica.source,
        "health": str(replica.state.health),
        "drained": replica.is_drained,
        "requests": ledger.requests,
        "offline_requests": sum(request.is_offline for request in ledger.running()),
        "requests_max": ledger.requests_max,
        "kv_tokens": ledger.kv_tokens,
        "kv_tokens_max": ledger.kv_tokens_max,
        "says_waiting": report.waiting,
        "says_running": report.running,
        "says_kv_share": report.kv_share,
        "report_age_seconds": ages,
        "seconds_per_token": replica.learned_costs.shown(),
        "last_failure": replica.state.last_failure,
        "models_withheld": replica.state.models_withheld,
        "kv_events": _kv_events(replica),
    }


def _kv_events(replica: UpstreamReplica) -> dict[str, object] | None:
    """What its KV events say; None where they are not read."""
    events = replica.kv_events
    if events is None:
        return None
    index, counts = events.index, events.counts
    return {
        "connected": events.is_connected,
        "whole": index.is_whole,
        "blocks": len(index),
        "block_tokens": index.block_tokens,
        "blocks_left_out": index.left_out,
        "ignored": index.ignored,
        **{name: getattr(counts, name) for name in COUNT_NAMES},
    }


def _kind_of(key: QueueKey) -> str:
    replicas = (key.home,) if key.home else key.replicas
    where = f" at {', '.join(replicas)}" if replicas else ""
    return f"{key.kind}{where}{', over budget' if key.is_over_budget else ''}"
