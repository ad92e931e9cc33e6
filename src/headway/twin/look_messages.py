"""What is asked of the twin's process and what it answers: plain values in lines of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from headway.config.wanted_objective import NAMED, Bound, WantedObjective
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.traffic_window import SeenRequest, columns_of

_COEFFICIENTS, _COEFFICIENT_MAX = 5, 1 << 62
BALANCED = WantedObjective("balanced", NAMED["balanced"])


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of the engines.

    Attributes:
        replicas: how many serve the queue.
        seats: requests that run at once in one of them.
        kv_tokens: its KV memory; None where unknown.
        batched_tokens: tokens of one step.
        prefix_caching: whether equal prefixes are found again.
        chooses_victims: whether the place of the queue decides who is preempted; a gateway does not.
    """

    replicas: int = 1
    seats: int = 256
    kv_tokens: int | None = None
    batched_tokens: int = 8_192
    prefix_caching: bool = True
    chooses_victims: bool = False


@dataclass(frozen=True, slots=True)
class TwinLook:
    """One question: which bundle does this traffic want?

    Attributes:
        columns: the requests, see `traffic_window.columns_of`; empty until `of` gives them.
        engine: what serves them.
        now: when the window was taken, seconds on its clock.
        current: the bundle that rules.
        default: the bundle to return to.
        before: the one before the last switch; None without one.
        switched_at: when that was.
        objective: what is wanted.
        slo: bounds of a request's times in seconds, by ttft, tpot and e2e; those that are given.
        step_time: coefficients of the last fit, to begin with; () for none.
        sure: share of the draws of a paired bootstrap in which a bundle has to be better to be so surely.
        seed: of all that is random.
        only: the bundles that compete beside those above; () for the whole grid.
    """

    engine: EngineFacts
    now: float
    current: ChosenBundle
    default: ChosenBundle
    before: ChosenBundle | None = None
    switched_at: float | None = None
    objective: WantedObjective = BALANCED
    slo: Mapping[str, float] = field(default_factory=lambda: {"ttft": 2.0, "tpot": 0.1})
    step_time: Sequence[int] = ()
    sure: float = 0.95
    seed: int = 0
    only: Sequence[ChosenBundle] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def of(self, rows: Sequence[SeenRequest]) -> TwinLook:
        """The same question about these requests. It takes its time, and may be called in a thread."""
        return replace(self, columns=columns_of(rows))

    def to_line(self) -> bytes:
        """One line of JSON."""
        bundles = {
            name: None if (one := getattr(self, name)) is None else one.to_json()
            for name in ("current", "default", "before")
        }
        plain = {name: getattr(self, name) for name in ("now", "switched_at", "slo", "step_time", "sure", "seed")}
        wanted = self.objective
        plain["objective"] = {
            "name": wanted.name,
            "weights": dict(wanted.weights),
            "bounds": {name: asdict(bound) for name, bound in wanted.bounds.items()},
        }
        content = {"columns": self.columns, "engine": asdict(self.engine), **bundles, **plain}
        content["only"] = [one.to_json() for one in self.only]
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> TwinLook:
        """Read it again."""
        given = json.loads(line)
        for name in ("current", "default", "before"):
            given[name] = None if given[name] is None else ChosenBundle.from_json(given[name])
        given["engine"] = EngineFacts(**given["engine"])
        given["only"] = [ChosenBundle.from_json(one) for one in given["only"]]
        wanted = given["objective"]
        bounds = {name: Bound(**bound) for name, bound in wanted["bounds"].items()}
        given["objective"] = WantedObjective(wanted["name"], wanted["weights"], bounds)
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one bundle made of the window in the simulator.

    Attributes:
        bundle: its policies.
        mean_ttft: seconds.
        p99_ttft: seconds.
        behind: how many times worse than the best bundle, by the objective.
        expected: by which factor it is expected to be better than the current one, by the objective: what it did on
            these requests, drawn to what it did on other traffic the more, the more of it may be chance.
        is_surely_better: than the current one, in enough draws of a paired bootstrap.
    """

    bundle: ChosenBundle
    mean_ttft: float
    p99_ttft: float
    behind: float
    expected: float = 1.0
    is_surely_better: bool = False


@dataclass(frozen=True, slots=True)
class Since:
    """Measured since the last switch, against the bundle before it, simulated on the same requests; ratios.

    Attributes:
        requests: so many.
        mean_ttft: of the mean time to first token.
        p99_ttft: of its 99th percentile.
    """

    requests: int
    mean_ttft: float
    p99_ttft: float


@dataclass(frozen=True, slots=True)
class LookAnswer:
    """What a look found.

    Attributes:
        requests: that were replayed.
        measured: of those, how many have a measured time to first token.
        fidelity: simulated over measured mean TTFT under the bundle that rules; None where nothing was measured.
        judged: the bundles, the current one first; only this one where nothing waited.
        since: what came of the last switch; None without one, or with too few requests.
        step_time: coefficients of the fit.
        cpu_seconds: that the process has used since it began.
        changed_at: when the traffic became another one, on the window's clock; None if it did not.
    """

    requests: int
    measured: int
    fidelity: float | None
    judged: Sequence[Judged]
    since: Since | None
    step_time: Sequence[int]
    cpu_seconds: float
    changed_at: float | None = None

    @property
    def current(self) -> Judged:
        """The bundle that rules."""
        return self.judged[0]

    @property
    def best(self) -> Judged:
        """What is expected to be best: the current one, unless another is expected to be better."""
        return max(self.judged, key=lambda one: one.expected)

    def to_line(self) -> bytes:
        """One line of JSON."""
        content = asdict(self)
        content["judged"] = [asdict(one) | {"bundle": one.bundle.to_json()} for one in self.judged]
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> LookAnswer:
        """Read an answer. Raises ValueError where it makes no sense, or says why there is none."""
        try:
            given = json.loads(line)
            if "fault" in given:
                raise ValueError(str(given["fault"])[:500])
            judged = [Judged(**one | {"bundle": ChosenBundle.from_json(one["bundle"])}) for one in given["judged"]]
            since = None if given["since"] is None else Since(**given["since"])
            answer = cls(**given | {"judged": judged, "since": since})
            numbers = [n for one in judged for n in (one.mean_ttft, one.p99_ttft, one.behind, one.expected)]
            numbers += [] if since is None else [since.mean_ttft, since.p99_ttft]
            numbers += [answer.cpu_seconds, answer.fidelity or 0.0, answer.changed_at or 0.0, *answer.step_time]
            is_sound = bool(judged) and all(math.isfinite(n) and n >= 0 for n in numbers)
            counts = (answer.requests, answer.measured)
            is_sound = is_sound and all(type(n) is int for n in counts) and is_step_time(answer.step_time)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the answer makes no sense ({error!r})") from None
        if not is_sound:
            raise ValueError("the answer makes no sense: no bundle was judged, or a number is none, or not finite")
        return answer


def is_step_time(given: object) -> bool:
    """Whether these are the five coefficients of a fit, as they come through a pipe or out of a file."""
    if not isinstance(given, list | tuple) or len(given) != _COEFFICIENTS:
        return False
    return all(type(one) is int and 0 <= one <= _COEFFICIENT_MAX for one in given)


@dataclass(frozen=True, slots=True)
class LookFault:
    """Why a look has no answer, one sentence."""

    reason: str
    cpu_seconds: float = field(default=0.0)
