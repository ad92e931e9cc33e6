"""The gateway's twin: fills the windows from its requests, and says by which policies its queues are ruled.

Without `ordering = "auto"` it does nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from headway.gateway.observing.prometheus_text import counter, gauge
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.prompt_prefixes import prefix_bounds
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import PolicySettings, Settings
from headway.gateway.settings_file import check_policies
from headway.twin.auto_steering import SENTENCES_KEPT, AutoSteering, Looks
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts
from headway.twin.look_process import LookProcess
from headway.twin.switch_rules import REQUESTS_MIN
from headway.twin.traffic_window import PREFIX_BLOCK_TOKENS, SeenRequest, TrafficWindow

_MODELS_MAX = 8
"""Models that are watched, the first to be asked for of those that a replica serves. Looks are at the one with most of
the gateway's latest requests that were not refused; a model with none of the latest gives its place up."""
_CHOSEN = ("ordering", "admission", "prediction")
_SEATS = 256  # where a replica's limit is not known


class GatewayTwin:
    """One per gateway; an observer of its requests."""

    def __init__(
        self,
        settings: Settings,
        replicas: Callable[[], Sequence[UpstreamReplica]],
        report: Callable[[str], None],
        looks: Looks | None = None,
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._report = report
        self._said_at: deque[float] = deque(maxlen=SENTENCES_KEPT)  # Unix seconds of the steering's sentences
        self._given = looks
        self._windows: dict[str, TrafficWindow] = {}
        self._latest: deque[tuple[str, SeenRequest]] = deque(maxlen=settings.auto.window_requests)  # of all models
        self._open: dict[int, SeenRequest] = {}
        self._model = ""
        self.steering = self._made()

    def _made(self) -> AutoSteering | None:
        auto, chosen = self._settings.auto, self._settings.policies
        if not auto.on:
            return None
        default = ChosenBundle(chosen.ordering, chosen.admission, chosen.preemption, chosen.prediction, chosen.options)
        process = self._given or LookProcess(auto.memory_mb, auto.answer_seconds)
        window = TrafficWindow(auto.window_requests)
        return AutoSteering(auto, default, process, window, self._engine, self._said, chosen.seed, self._check)

    def _said(self, sentence: str) -> None:
        self._said_at.append(time.time())
        self._report(sentence)

    def _check(self, wanted: ChosenBundle) -> None:
        check_policies(_policies(self._settings.policies, wanted))

    def change(self, settings: Settings) -> None:
        """Other settings: a twin whose own have changed, or the policies to return to, begins anew."""
        before, self._settings = self._settings, settings
        is_same = (settings.auto, settings.policies) == (before.auto, before.policies)
        if not is_same or (self.steering is not None and self.steering.wanted != settings.auto.wanted()):
            self.close()
            self._windows.clear()
            self._latest = deque(maxlen=settings.auto.window_requests)
            self._open.clear()
            self._said_at.clear()
            self.steering = self._made()

    def in_force(self, settings: Settings) -> Settings:
        """The settings with the policies that the twin has chosen."""
        if self.steering is None:
            return settings
        return replace(settings, policies=_policies(settings.policies, self.steering.rules.current))

    def follow(self, dispatcher: Dispatcher, now: float) -> None:
        """About once a second: switch the queues to what the twin wants, as soon as the last switch is over."""
        if self.steering is None:
            return
        self._choose_model(self.steering)
        wanted, queues = self.steering.poll(now), dispatcher.served_queues
        if wanted is not None and not queues.is_switching:
            policies = _policies(dispatcher.settings.policies, wanted)
            dispatcher.settings = replace(dispatcher.settings, policies=policies)
            queues.switch(policies)
            self.steering.switched(now)

    def _choose_model(self, steering: AutoSteering) -> None:
        """Look at the model that most requests are for now: a full window of an hour ago says nothing of that."""
        here = {model for model, _ in self._latest}
        self._windows = {model: window for model, window in self._windows.items() if model in here}
        stayed = Counter(model for model, seen in self._latest if not seen.has_left)
        if stayed:
            self._model = stayed.most_common(1)[0][0]
        if self._model in self._windows:
            steering.window = self._windows[self._model]

    def metrics(self) -> Iterator[str]:
        """Its looks, its switches and what it uses; nothing without a twin."""
        steering = self.steering
        if steering is None:
            return
        bundle = steering.rules.current.label
        yield gauge("headway_auto_bundle", "1 for the bundle that the twin has chosen", [({"bundle": bundle}, 1)])
        for name, meaning, number in (
            ("looks", "Looks of the twin that were answered", steering.looks),
            ("switches", "Switches to another bundle", steering.switches),
            ("look_faults", "Looks without an answer: the twin's process failed", steering.faults),
        ):
            yield counter(f"headway_auto_{name}", meaning, [({}, number)])
        used = "Processor time that the twin's processes have used"
        yield gauge("headway_auto_cpu_seconds", used, [({}, steering.cpu_seconds)])
        yield gauge("headway_auto_memory_bytes", "Memory of the twin's process", [({}, steering.memory_bytes)])

    def state(self) -> dict[str, Any]:
        """What is kept over a restart."""
        return {} if self.steering is None else self.steering.state()

    def restore(self, saved: object) -> None:
        """Take it back. Raises ValueError if it is something else."""
        if self.steering is not None:
            self.steering.restore(saved)

    def close(self) -> None:
        """End its process."""
        if self.steering is not None:
            self.steering.close()

    def shown(self) -> dict[str, Any] | None:
        """What the live page shows, with the Unix seconds of each sentence; None without a twin."""
        steering = self.steering
        if steering is None:
            return None
        return {
            "bundle": steering.rules.current.label,
            "objective": steering.settings.objective,
            "requests_min": REQUESTS_MIN,
            "sentences": steering.sentences,
            "said_at": list(self._said_at),
        }

    def arrived(self, request: GatewayRequest) -> None:
        """A request came in."""
        arrived = request.arrived
        if self.steering is None or not arrived.endpoint.is_generation or request.queued.is_offline:
            return
        window = self._windows.get(arrived.model)
        if window is None:
            if len(self._windows) >= _MODELS_MAX or not any(one.serves(arrived.model) for one in self._replicas()):
                return  # else made-up names would take all places
            window = self._windows[arrived.model] = TrafficWindow(self._settings.auto.window_requests)
        seen = self._open[arrived.number] = window.add(_seen(request))
        self._latest.append((arrived.model, seen))

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """A request left its queue for a replica."""
        seen = self._open.get(request.arrived.number)
        if seen is not None:
            queued = request.queued
            seen.started(now, queued.prompt_tokens, "" if queued.replica is None else queued.replica.name)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended. Of one that was not answered whole, the length is unknown."""
        seen = self._open.pop(request.arrived.number, None)
        if seen is None:
            return
        relayed, queued = request.relayed, request.queued
        tokens = -(-relayed.output_tokens // max(1, queued.sequences))
        is_answer = outcome is Outcome.COMPLETED and relayed.status == 200  # else the engine refused it, at no cost
        if not is_answer or tokens < 1 or queued.dispatched_at is None:
            seen.has_left = True
            return
        first = relayed.first_byte_at if request.arrived.streams else None
        seen.answered(queued.dispatched_at, first, now, tokens)

    def _engine(self) -> EngineFacts:
        serving = [one for one in self._replicas() if one.is_up and one.serves(self._model)]
        seats = [one.ledger.requests_max for one in serving if one.ledger.requests_max]
        memory = [one.ledger.kv_tokens_max for one in serving if one.ledger.kv_tokens_max]
        return EngineFacts(
            max(1, len(serving)),
            int(min(seats)) if seats else _SEATS,
            int(min(memory)) if memory else None,
        )


def _policies(configured: PolicySettings, chosen: ChosenBundle) -> PolicySettings:
    options = {kind: given for kind, given in configured.options.items() if kind not in _CHOSEN}
    options |= {kind: given for kind, given in chosen.options.items() if kind in _CHOSEN}
    return replace(
        configured,
        ordering=chosen.ordering,
        admission=chosen.admission,
        prediction=chosen.prediction,
        options=options,
    )


def _seen(request: GatewayRequest) -> SeenRequest:
    arrived, queued = request.arrived, request.queued
    return SeenRequest(
        arrived.arrived_at,
        max(1, queued.prompt_tokens),
        max_output_tokens=queued.max_output_tokens,
        priority=arrived.priority,
        deadline_seconds=None if arrived.deadline is None else max(0.0, arrived.deadline - arrived.arrived_at),
        tenant=arrived.tenant,
        session=arrived.session,
        later=None if arrived.later_deadlines is None else arrived.later_deadlines.moved(-arrived.arrived_at),
        prefix=prefix_blocks(arrived.prompt.hashes, arrived.prompt.bytes, queued.prompt_tokens),
    )


def prefix_blocks(hashes: Sequence[int], prompt_bytes: int, prompt_tokens: int) -> list[int]:
    """Ids of a prompt's leading blocks of 512 tokens, from the hashes of its ever longer parts.

    A block's id is that of the first part that covers it whole. So blocks with one id are equal, and some equal blocks
    have two.
    """
    if not hashes or prompt_tokens < 1:
        return []
    bytes_per_block = PREFIX_BLOCK_TOKENS * prompt_bytes / prompt_tokens
    ids, block = [], 1
    for bound, hashed in zip(prefix_bounds(prompt_bytes), hashes, strict=False):
        while block * bytes_per_block <= bound:
            ids.append(hash((hashed, block)))
            block += 1
    return ids
