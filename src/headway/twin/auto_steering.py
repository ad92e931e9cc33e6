"""Steering: looks at the traffic from time to time, and says when to rule by another bundle.

One for each queue owner (a gateway, an engine, a simulated day). `poll` is called about once a second and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, LookAnswer, LookFault, TwinLook, is_step_time
from headway.twin.order_prior import first_bundle
from headway.twin.switch_rules import REQUESTS_MIN, SwitchRules
from headway.twin.traffic_window import SeenRequest, TrafficWindow

SENTENCES_KEPT = 20
_GRID_EVERY = 4
"""Looks between two at the whole grid; the others are at the best few of the last one, and cost a third."""
_FINALISTS = 3


class Looks(Protocol):
    """Carries out one look at a time; `LookProcess`, or the simulator's."""

    @property
    def is_busy(self) -> bool:
        """Whether a look is under way."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time used since the beginning."""

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes now."""

    @property
    def pause_seconds(self) -> float:
        """How long to wait after a fault; 0 after an answer."""

    def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        """Begin a look at these requests."""

    def take(self) -> LookAnswer | LookFault | None:
        """What it found, once; None while it goes on."""

    def close(self) -> None:
        """End it."""


class AutoSteering:
    """Chooses the bundle of one scheduler, or of several that share their policies.

    Attributes:
        wanted: the objective.
        rules: what rules now, and why.
        sentences: the latest looks, the newest last.
        looks: looks that were answered.
        switches: so many.
        faults: looks without an answer.
    """

    def __init__(
        self,
        settings: AutoSettings,
        default: ChosenBundle,
        looks: Looks,
        window: TrafficWindow,
        engine: Callable[[], EngineFacts],
        report: Callable[[str], None] = lambda sentence: None,
        seed: int = 0,
        check: Callable[[ChosenBundle], None] = lambda bundle: None,
    ) -> None:
        """`report` gets a sentence about each look; `engine` is asked before each.

        `check` raises ValueError, one sentence, of a bundle that the shell cannot build: what a process answers and
        what a file holds is not believed before.
        """
        self.settings = settings
        self.wanted = settings.wanted()
        self.rules = SwitchRules(settings, default)
        self.window = window
        self.sentences: list[str] = []
        self.looks = 0
        self.switches = 0
        self.faults = 0
        self._process = looks
        self._engine = engine
        self._report = report
        self._seed = seed
        self._check = check
        self._step_time: tuple[int, ...] = ()
        self._next_at = -math.inf
        self._began_at = 0.0
        self._cpu_at_ask = 0.0
        first = first_bundle(self.wanted.weights, default) if settings.begin == "objective" else default
        self._first = None if first == default else first  # until it rules
        self._wanted: tuple[ChosenBundle, LookAnswer] | None = None
        self._finalists: list[ChosenBundle] = []  # of the last look at the whole grid
        self._until_grid = 0
        self._changed_at = -math.inf

    @property
    def cpu_seconds(self) -> float:
        """Processor time that looks have used."""
        return self._process.cpu_seconds

    @property
    def memory_bytes(self) -> int:
        """Memory that looks take now."""
        return self._process.memory_bytes

    def poll(self, now: float) -> ChosenBundle | None:
        """Take an answer, or begin a look when it is time to. Returns the bundle that should rule from now on.

        The shell switches to it and calls `switched`; while it cannot, it is told again.
        """
        if self._first is not None:
            return self._first
        if self._process.is_busy:
            found = self._process.take()
            if found is not None:
                self._found(found, now)
        elif self._wanted is None and now >= self._next_at:
            self._ask(now)
        return None if self._wanted is None else self._wanted[0]

    def switched(self, now: float) -> None:
        """The shell rules by what `poll` returned."""
        if self._first is not None:
            self.rules.begun(self._first, now)
            self._say(f"begins with {self._first.label}: on other traffic it did best by {self.wanted.name}")
            self._first = None
        elif self._wanted is not None:
            self.rules.done(*self._wanted, now)
            self._wanted = None
            self.switches += 1

    def state(self) -> dict[str, Any]:
        """What is kept over a restart."""
        return self.rules.state() | {"step_time": list(self._step_time), "objective": self._asked_for()}

    def restore(self, saved: object) -> None:
        """Take it back. Raises ValueError if it is something else; then nothing has changed.

        A bundle that another objective chose is left: under a tail's it may be an order without a bound on waits.
        """
        step_time = saved.get("step_time", ()) if isinstance(saved, Mapping) else ()
        if step_time not in ((), []) and not is_step_time(step_time):
            raise ValueError("the step time of the twin is not five whole numbers")
        before = self.rules.current
        is_known = self.rules.restore(saved)
        if is_known and isinstance(saved, Mapping) and saved.get("objective") != self._asked_for():
            self.rules.current, is_known = before, False
        try:
            self._check(self.rules.current)
        except ValueError:
            self.rules.current = before
            raise
        if is_known:
            self._first = None
        self._step_time = tuple(step_time)

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _slo(self) -> Mapping[str, float]:
        return self.wanted.slo or {"ttft": self.settings.ttft_seconds, "tpot": self.settings.tpot_seconds}

    def _asked_for(self) -> dict[str, Any]:
        wanted = self.wanted
        bounds = {name: asdict(bound) for name, bound in wanted.bounds.items()}
        return {"weights": dict(wanted.weights), "at_most": bounds, "slo": dict(self._slo())}

    def _ask(self, now: float) -> None:
        self._next_at = now + self.settings.look_seconds
        rows = self.window.rows()
        if len(rows) < REQUESTS_MIN:
            return
        switched, rules = self.rules.switched, self.rules
        self._began_at, self._cpu_at_ask = now, self.cpu_seconds
        self._process.ask(
            TwinLook(
                self._engine(),
                now,
                rules.current,
                rules.default,
                None if switched is None else switched.before,
                None if switched is None else switched.at,
                self.wanted,
                self._slo(),
                self._step_time,
                self.settings.sure,
                self._seed,
                self._finalists if self._until_grid else (),
            ),
            rows,
        )

    def _found(self, found: LookAnswer | LookFault, now: float) -> None:
        used = self.cpu_seconds - self._cpu_at_ask
        pause = max(self.settings.look_seconds, used / self.settings.cpu_share)
        self._next_at = max(self._began_at + pause, now + self._process.pause_seconds)
        if isinstance(found, LookFault):
            self.faults += 1
            wait = self._next_at - now
            self._say(f"stays with {self.rules.current.label}: {found.reason}; the next look is in {wait:.0f} s")
            return
        self.looks += 1
        if found.changed_at is not None and found.changed_at > self._changed_at + self.settings.look_seconds:
            self._changed_at, self._until_grid = found.changed_at, 0  # other orders may be best now
        elif self._until_grid:
            self._until_grid -= 1
        elif len(found.judged) > 1:
            ranked = sorted(found.judged, key=lambda one: -one.expected)
            self._finalists, self._until_grid = [one.bundle for one in ranked[:_FINALISTS]], _GRID_EVERY - 1
        self._step_time = tuple(found.step_time)
        decision = self.rules.decide(found, now)
        if decision.to is not None and decision.to != self.rules.current:
            try:
                self._check(decision.to)
            except ValueError as error:
                self.faults += 1
                self._say(f"stays with {self.rules.current.label}: a bundle of the look cannot be used: {error}")
                return
            self._wanted = decision.to, found
        self._say(decision.sentence)

    def _say(self, sentence: str) -> None:
        self.sentences = [*self.sentences[1 - SENTENCES_KEPT :], sentence]
        self._report(sentence)
