"""A simulated day that a twin steers in virtual time: the same window, looks and rules as in a gateway or an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Json
from headway.bench.twin.looking import answer_of
from headway.domain.event import Listener
from headway.scheduling.bundle import bundle_of
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica
from headway.simulator.rules import NO_PLUGIN, PluginRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Trace
from headway.twin.auto_settings import AutoSettings
from headway.twin.auto_steering import AutoSteering
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, LookAnswer, LookFault, TwinLook
from headway.twin.traffic_window import SeenRequest, TrafficWindow, WindowListener

REPLAY_SECONDS = 250e-6
"""What a request of a replay costs in virtual time: measured on a shared core of a virtual machine, where many wait."""
FITTING_REPLAYS = 6
"""Replays of the window that fitting takes beside those that are judged."""


@dataclass(slots=True)
class SteeredDay:
    """What became of a day under a twin.

    Attributes:
        outcome: of its requests.
        sentences: one for each look, with its time.
        switches: (seconds, label) of each.
    """

    outcome: DayOutcome
    sentences: list[str] = field(default_factory=list)
    switches: list[tuple[float, str]] = field(default_factory=list)


def steered_day(
    trace: Trace,
    replica: Replica,
    settings: AutoSettings,
    default: ChosenBundle,
    seed: int = 0,
    asked: Callable[[TwinLook], LookAnswer] | None = None,
    listeners: Sequence[Listener] = (),
    plugin: PluginRules = NO_PLUGIN,
) -> SteeredDay:
    """Simulate one day on one engine whose bundle a twin chooses; `asked` may stand in for the twin's answers."""
    window = TrafficWindow(settings.window_requests)
    day = _Steered(trace, replica, settings, default, seed, window, asked)
    outcome = simulate(
        trace,
        replica.rules,
        replica.step_time,
        day.policies(default),
        plugin=plugin,
        listeners=[WindowListener(window), *listeners],
        steering=day,
    )
    return SteeredDay(outcome, day.sentences, day.switches)


@dataclass(frozen=True, slots=True)
class AutoRun:
    """A row of a comparison: the day under a twin with these settings.

    `slo` are bounds of a request's times in seconds, by ttft, tpot and e2e, where the objective gives none itself.
    """

    settings: AutoSettings
    slo: Mapping[str, float]

    def __call__(
        self, trace: Trace, replica: Replica, bundle: Bundle, seed: int, listeners: Sequence[Listener]
    ) -> tuple[DayOutcome, list[str]]:
        """The day, begun and returned to with the policies of `bundle`, and a sentence for each look."""
        default = ChosenBundle(bundle.ordering, bundle.admission, bundle.preemption, bundle.prediction, bundle.options)
        day = steered_day(trace, replica, self.settings, default, seed, self._asked, listeners, bundle.plugin)
        return day.outcome, day.sentences

    def to_json(self) -> dict[str, Json]:
        """The objective, and the bounds that are not its own."""
        return {"objective": self.settings.objective, "slo": dict(self.slo)}

    def _asked(self, look: TwinLook) -> LookAnswer:
        return answer_of(replace(look, slo=look.objective.slo or self.slo), lambda: 0.0)


class InlineLooks:
    """Looks that are carried out at once, and answered after the time that they cost."""

    is_busy = False
    memory_bytes = 0
    pause_seconds = 0.0

    def __init__(self, asked: Callable[[TwinLook], LookAnswer] | None = None) -> None:
        self.cpu_seconds = 0.0
        self._asked = asked or (lambda look: answer_of(look, lambda: 0.0))
        self._found: LookAnswer | LookFault | None = None
        self.ready_at = 0.0
        self.now = 0.0

    def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        """TwinLook now; the answer is ready later."""
        replays = FITTING_REPLAYS
        try:
            self._found = found = self._asked(look.of(rows))
            replays += len(found.judged)
        except ValueError as error:
            self._found = LookFault(str(error))
        used = replays * len(rows) * REPLAY_SECONDS
        self.is_busy = True
        self.ready_at = look.now + used
        self.cpu_seconds += used

    def take(self) -> LookAnswer | LookFault | None:
        """The answer, once its time has come."""
        if self.now < self.ready_at:
            return None
        self.is_busy = False
        found, self._found = self._found, None
        return found

    def close(self) -> None:
        """Nothing is to be ended."""


class _Steered:
    """Steering of one day, asked once a virtual second."""

    def __init__(
        self,
        trace: Trace,
        replica: Replica,
        settings: AutoSettings,
        default: ChosenBundle,
        seed: int,
        window: TrafficWindow,
        asked: Callable[[TwinLook], LookAnswer] | None,
    ) -> None:
        self.next_check_ps = 0
        self.sentences: list[str] = []
        self.switches: list[tuple[float, str]] = []
        self._replica, self._seed = replica, seed
        self._looks = InlineLooks(asked)
        rules = replica.rules
        engine = EngineFacts(
            1,
            rules.max_num_seqs,
            rules.kv_blocks * rules.block_tokens,
            rules.max_num_batched_tokens,
            rules.prefix_caching,
            chooses_victims=True,
        )
        self._steering = AutoSteering(settings, default, self._looks, window, lambda: engine, self._say, seed)
        self._now = 0.0
        self._policies: Policies | None = None
        self._prediction = default.prediction

    def policies(self, chosen: ChosenBundle) -> Policies:
        """Fresh policies; a predictor of the same name goes on with what it has learned."""
        made = bundle_of(chosen, costs=self._replica.costs, seed=self._seed)
        if self._policies is not None and chosen.prediction == self._prediction:
            made = Policies(made.ordering, made.admission, made.preemption, self._policies.prediction)
        self._policies, self._prediction = made, chosen.prediction
        return made

    def check(self, scheduler: Scheduler, now_ps: int) -> None:
        """TwinLook or switch, if it is time to."""
        self.next_check_ps = now_ps + PS_PER_SECOND
        self._now = self._looks.now = now_ps * SECONDS_PER_PS
        wanted = self._steering.poll(self._now)
        if wanted is not None and not scheduler.is_switching and not scheduler.suspended:
            scheduler.switch(self.policies(wanted), self._now)
            self._steering.switched(self._now)
            self.switches.append((self._now, wanted.label))

    def _say(self, sentence: str) -> None:
        self.sentences.append(f"{self._now:.0f} s: {sentence}")
