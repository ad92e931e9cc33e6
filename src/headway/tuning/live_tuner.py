"""Live tuner: tries options while requests are served, one trial a window, cut short and fenced off when it does harm.

It listens to every event, keeps the window's numbers and a shadow FCFS queue, and retunes the policy at the end of each
window. A trial is judged by the requests that arrived in it and by no other waits, so a harmful one does not spoil the
next. A change of the workload restarts the search from the best point known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken
from headway.domain.request import RequestId, uncached_prefill_tokens
from headway.policies.contracts import Retunable
from headway.scheduling.shadow_fcfs import ShadowAdmission, ShadowFcfs
from headway.tuning.drift import DriftTest
from headway.tuning.optimiser import Optimiser, Sampler
from headway.tuning.rewards import Objective, plain_reward
from headway.tuning.search import Fences, SearchBox, Shares
from headway.tuning.tuning_settings import TuningSettings

_LEAST_WAITS = 100  # before a 99th percentile means anything
_LOOK_EVERY = 25  # admissions between two looks at the harm done


@dataclass(frozen=True, slots=True)
class Trial:
    """Outcome of one window: the values tried, their reward, and how it ended."""

    values: Mapping[str, float]
    reward: float
    ended: Literal["in time", "cut short", "drift"]
    at: float

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return f"{values} was worth {self.reward:.3f}, {self.ended}"


class LiveTuner:
    """Tunes one policy on one scheduler; pass it as a listener, after the policy."""

    def __init__(
        self,
        policy: Retunable,
        box: SearchBox,
        start: Mapping[str, float],
        *,
        seed: int,
        settings: TuningSettings | None = None,
        sampler: Sampler | None = None,
        drift: DriftTest | None = None,
    ) -> None:
        self.settings = settings or TuningSettings()
        self._objective = Objective(self.settings.ttft_seconds, self.settings.starved_seconds)
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._policy = policy
        self._box = box
        self._seed = seed
        self._sampler = sampler
        self._drift = drift or DriftTest()
        self._restarts = 0
        self._shadow = ShadowFcfs(seats=False)
        self._waiting: dict[RequestId, float] = {}  # arrived at; without a first token
        self._queued: set[RequestId] = set()  # of those, not admitted yet
        self._optimiser = self._begin(start)
        self._number: int | None = None
        self._values: Mapping[str, float] = dict(start)
        self._began_at = 0.0
        self._ends_at: float | None = None
        self._clear()

    def observe(self, event: Event) -> None:
        """Take note of an event; act when a window ends, harm is seen or the workload has changed."""
        if self._ends_at is None:
            self._start_trial(event.at)
        drifted = None
        match event:
            case Arrived(request=request, at=at):
                self._waiting[request.id] = request.arrived_at
                self._queued.add(request.id)
                self._shadow.arrived(request.id, request.arrived_at, uncached_prefill_tokens(request))
                drifted = self._drift.arrived(at, request.prompt_tokens)
            case Admitted(request=request, at=at) if request.id in self._queued:
                self._queued.discard(request.id)
                if request.arrived_at >= self._began_at:
                    self._live_waits.append(at - request.arrived_at)
                self._admitted_by_fcfs(self._shadow.admitted(uncached_prefill_tokens(request)), at)
            case FirstToken(request=request, at=at) | Completed(request=request, at=at):
                arrived_at = self._waiting.pop(request.id, None)
                if arrived_at is not None and arrived_at >= self._began_at:
                    self._ttfts.append(at - arrived_at)
            case Cancelled(request=request, at=at):
                self._waiting.pop(request.id, None)
                if request.id in self._queued:
                    self._queued.discard(request.id)
                    self._admitted_by_fcfs(self._shadow.left(request.id), at)
            case _:
                pass
        self._act(event, drifted)

    def best(self) -> Mapping[str, float]:
        """The best values since the last restart; the ones it began with until a trial has ended."""
        best = self._optimiser.best()
        return self._start if best is None else self._box.values(best[0])

    def _act(self, event: Event, drifted: str | None) -> None:
        assert self._ends_at is not None, "a window is always open"
        if drifted is not None:
            self.notes.append(f"at {event.at:.0f} s {drifted}: exploring again from the best known")
            self._end_trial(event.at, "drift")
            self._restarts += 1
            self._optimiser = self._begin(self.best())
            self._drift.restart()
            self._start_trial(event.at)
        elif event.at >= self._ends_at:
            self._end_trial(event.at, "in time")
            self._start_trial(event.at)
        elif self._number is not None and self._does_harm(event):
            self._end_trial(event.at, "cut short")
            self._policy.retune(self.best())
            self._start_trial(event.at)

    def _admitted_by_fcfs(self, admissions: list[ShadowAdmission], at: float) -> None:
        self._shadow_waits += [at - one.arrived_at for one in admissions if one.arrived_at >= self._began_at]

    def _begin(self, start: Mapping[str, float]) -> Optimiser:
        self._start = dict(start)
        optimiser = Optimiser(self._box, seed=self._seed + self._restarts, fences=Fences(), sampler=self._sampler)
        optimiser.suggest(start)
        return optimiser

    def _start_trial(self, at: float) -> None:
        self._clear()
        self._began_at = at
        self._ends_at = at + self.settings.window_seconds
        if len(self._optimiser.results) >= self.settings.trials:
            self._number = None
            values = self.best()
        else:
            self._number, point = self._optimiser.ask()
            values = self._box.values(point)
        self._values = values
        self._policy.retune(values)

    def _end_trial(self, at: float, ended: Literal["in time", "cut short", "drift"]) -> None:
        if self._number is None:
            return
        waited = [at - arrived_at for arrived_at in self._waiting.values() if arrived_at >= self._began_at]
        late = [wait for wait in waited if wait > self.settings.ttft_seconds]
        reward = plain_reward(np.array([*self._ttfts, *late]), self._objective)
        self.trials.append(Trial(self._values, reward, ended, at))
        if ended == "cut short":
            self._optimiser.fences.add(self._point())
        self._optimiser.tell(self._number, reward)
        self._number = None

    def _point(self) -> Shares:
        return self._box.shares(self._values)

    def _does_harm(self, event: Event) -> bool:
        """Whether the p99 wait is clearly above that of FCFS; asked once in a while, for it costs a sort."""
        if not isinstance(event, Admitted) or len(self._live_waits) % _LOOK_EVERY or not self._comparable():
            return False
        live = self._p99(self._live_waits, [self._waiting[request_id] for request_id in self._queued], event.at)
        shadow = self._p99(self._shadow_waits, self._shadow.waiting(), event.at)
        return live > self.settings.ttft_seconds and live > self.settings.harm * shadow

    def _p99(self, waits: list[float], waiting: list[float], now: float) -> float:
        """99th percentile over requests that arrived in this trial: admitted ones, and waiting ones by their age."""
        ages = [now - arrived_at for arrived_at in waiting if arrived_at >= self._began_at]
        return float(np.percentile([*waits, *ages], 99))

    def _comparable(self) -> bool:
        return min(len(self._live_waits), len(self._shadow_waits)) >= _LEAST_WAITS

    def _clear(self) -> None:
        self._ttfts: list[float] = []
        self._live_waits: list[float] = []
        self._shadow_waits: list[float] = []
