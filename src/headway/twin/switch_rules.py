"""Switch rules: what follows from a look. Pure: answers in, decisions and one sentence each out.

Laws: a switch needs an expected gain of at least `gain`; where the objective rests on a tail, also one beyond the noise
of a paired bootstrap, in `looks` looks in a row. Where a prediction was false by more than `parted`, the default comes
back and the bundle is fenced off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import Judged, LookAnswer

REQUESTS_MIN = 200
"""Fewer say nothing."""
SINCE_MIN = 100
"""Requests since a switch before its prediction is judged."""
FELT_SECONDS = 0.05
"""A mean TTFT below this is not judged by ratios: a few steps more or less would be half of it."""


@dataclass(frozen=True, slots=True)
class Switched:
    """The last switch: from what to what, when, and what was predicted of it as ratios new over old."""

    before: ChosenBundle
    at: float
    mean_ttft: float
    p99_ttft: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a look: a bundle to switch to, or None; and a sentence for log and page."""

    to: ChosenBundle | None
    sentence: str
    is_return: bool = False


class SwitchRules:
    """Keeps what rules and what was promised of it; `decide` is asked once for each look."""

    def __init__(self, settings: AutoSettings, default: ChosenBundle) -> None:
        self._settings = settings
        self._is_tail = settings.wanted().rests_on_the_tail
        self.default = default
        self.current = default
        self.switched: Switched | None = None
        self._agreed = 0
        self._fenced: dict[str, float] = {}  # label -> until

    def decide(self, answer: LookAnswer, now: float) -> Decision:
        """What to do after this look, at `now` seconds. A switch is not noted before `done`."""
        if answer.requests < REQUESTS_MIN or answer.measured < REQUESTS_MIN // 2:
            return Decision(None, f"too few requests to judge ({answer.requests})")
        fault = self._mispredicted(answer)
        if fault is not None:
            self._agreed = 0
            if self.current == self.default:
                return Decision(None, f"stays with {self.current.label}: {fault}")
            self._fence(self.current, now)
            return Decision(self.default, f"returns from {self.current.label} to {self.default.label}: {fault}", True)
        measured = self._measured(answer)
        best, gain = answer.best, answer.best.expected
        why_not = self._why_not(answer, gain, now)
        if why_not is not None:
            self._agreed = 0
            return Decision(None, f"stays with {self.current.label}: {why_not}{measured}")
        self._agreed += 1  # looks in a row that wanted another bundle, if not always the same one
        predicted = _predicted(best, answer.current, gain)
        if self._is_tail and self._agreed < self._settings.looks:
            said = f"stays with {self.current.label} until another look agrees on {best.bundle.label}: {predicted}"
            return Decision(None, said + measured)
        return Decision(best.bundle, f"from {self.current.label} to {best.bundle.label}: {predicted}{measured}")

    def begun(self, first: ChosenBundle, now: float) -> None:
        """The shell rules by the order to begin with. Nothing is promised but that it is no worse than the default."""
        self.switched, self.current, self._agreed = Switched(self.default, now, 1.0, 1.0), first, 0

    def done(self, to: ChosenBundle, answer: LookAnswer, now: float) -> None:
        """The shell has switched as decided from this answer."""
        new = next((one for one in answer.judged if one.bundle == to), None)
        ratios = (1.0, 1.0)
        if new is not None:
            ratios = _ratio(new.mean_ttft, answer.current.mean_ttft), _ratio(new.p99_ttft, answer.current.p99_ttft)
        self.switched = None if to == self.default and new is None else Switched(self.current, now, *ratios)
        self.current = to
        self._agreed = 0

    def pin_default(self) -> None:
        """Rule by the default, with nothing promised of it."""
        self.current, self.switched, self._agreed = self.default, None, 0

    def state(self) -> dict[str, Any]:
        """What is kept over a restart: the bundle that rules."""
        return {"bundle": self.current.to_json(), "default": self.default.to_json()}

    def restore(self, saved: object) -> bool:
        """Take back what `state` gave, unless the default has changed. Raises ValueError if it is something else."""
        if not isinstance(saved, Mapping) or not {"bundle", "default"} <= set(saved):
            raise ValueError("what the twin had chosen is no table with bundle and default")
        bundle, default = (ChosenBundle.from_json(saved[name]) for name in ("bundle", "default"))
        if default == self.default:
            self.current = bundle
        return default == self.default

    def _mispredicted(self, answer: LookAnswer) -> str | None:
        """Why what was predicted is not believed; None where it held."""
        parted = self._settings.parted
        if answer.fidelity is not None and not 1 / parted <= answer.fidelity <= parted:
            return f"the simulated mean TTFT is {answer.fidelity:.2f}× the measured one, beyond a factor of {parted:g}"
        if self.switched is None or answer.since is None or answer.since.requests < SINCE_MIN:
            return None
        if answer.since.mean_ttft > parted * self.switched.mean_ttft and answer.since.mean_ttft > 1:
            return (
                f"predicted mean TTFT {self.switched.mean_ttft:.2f}×, measured since {answer.since.mean_ttft:.2f}×, "
                f"apart by more than a factor of {parted:g}"
            )
        return None

    def _measured(self, answer: LookAnswer) -> str:
        if self.switched is None or answer.since is None:
            return ""
        since, promised = answer.since, self.switched
        return (
            f"; since the last switch measured {since.mean_ttft:.2f}×, {since.p99_ttft:.2f}× "
            f"(predicted {promised.mean_ttft:.2f}×, {promised.p99_ttft:.2f}×)"
        )

    def _why_not(self, answer: LookAnswer, gain: float, now: float) -> str | None:
        """Why the best bundle of a look is not wanted; None if it is."""
        best = answer.best
        if len(answer.judged) == 1:
            return "no order makes a difference to these requests"
        if best.bundle == self.current or gain <= 1:
            return f"the best of {len(answer.judged)}"
        said = f"{best.bundle.label} is ahead ({_predicted(best, answer.current, gain)})"
        if gain < self._settings.gain:
            return f"{said}, by less than a factor of {self._settings.gain:g}"
        if self._is_tail and not best.is_surely_better:
            return f"{said}, and it may be chance"
        until = self._fenced.get(best.bundle.label, -math.inf)
        return f"{said}, and was mispredicted; fenced off for {until - now:.0f} s more" if until > now else None

    def _fence(self, bundle: ChosenBundle, now: float) -> None:
        self._fenced = {label: until for label, until in self._fenced.items() if until > now}
        self._fenced[bundle.label] = now + self._settings.fence_seconds


def _predicted(new: Judged, old: Judged, gain: float) -> str:
    mean, p99 = _ratio(new.mean_ttft, old.mean_ttft), _ratio(new.p99_ttft, old.p99_ttft)
    seen = old.behind / max(new.behind, 1e-9)
    ratios = f"predicted mean TTFT {mean:.2f}×, p99 {p99:.2f}×"
    return f"{ratios}, {seen:.2f} times better by the objective, {gain:.2f} expected"


def _ratio(new: float, old: float) -> float:
    return new / old if old > 0 else 1.0
