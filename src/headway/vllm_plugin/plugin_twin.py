"""The plug-in's twin: fills the window from the engine's events, and switches its policies. Off, it does nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from headway.domain.event import Listener
from headway.domain.request import RequestView
from headway.scheduling.bundle import bundle_of
from headway.scheduling.scheduler import Policies
from headway.twin.auto_steering import AutoSteering, Looks
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts
from headway.twin.look_process import LookProcess
from headway.twin.traffic_window import TrafficWindow, WindowListener
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_log import logger


class PluginTwin:
    """One per engine."""

    def __init__(
        self,
        config: PluginConfig,
        engine: Callable[[], EngineFacts],
        prefix_of: Callable[[RequestView], Sequence[int]] = lambda request: (),
        looks: Looks | None = None,
    ) -> None:
        """`prefix_of` gives a prompt's hashes, see `WindowListener`."""
        self._config = config
        self.steering: AutoSteering | None = None
        self.listeners: tuple[Listener, ...] = ()
        if not config.auto.on:
            return
        default = ChosenBundle(config.ordering, config.admission, config.preemption, config.prediction, config.options)
        window = TrafficWindow(config.auto.window_requests)
        process = looks or LookProcess(config.auto.memory_mb, config.auto.answer_seconds)
        self.steering = AutoSteering(config.auto, default, process, window, engine, _log, config.seed, self._check)
        self.listeners = (WindowListener(window, prefix_of),)

    def follow(self, policies: FallbackScheduler, now: float) -> None:
        """Once a second, before a step: switch to what the twin wants, as soon as the last switch is over.

        The predictor stays that of the configuration: what it has learned is worth more than another one's start.
        A fault of ours ends the twin, and not the engine: the policies that rule go on.
        """
        if self.steering is None:
            return
        try:
            self._follow(self.steering, policies, now)
        except Exception:
            logger.exception("headway: auto: an internal error ends the twin; the policies that rule now go on")
            self.close()
            self.steering = None

    def _follow(self, steering: AutoSteering, policies: FallbackScheduler, now: float) -> None:
        wanted = steering.poll(now)
        if wanted is None or not policies.may_switch:
            return
        policies.switch(self._built(wanted), now)
        steering.switched(now)

    def _built(self, wanted: ChosenBundle) -> Policies:
        options = {kind: given for kind, given in wanted.options.items() if kind != "prediction"}
        kept = replace(wanted, prediction=self._config.prediction, options=options)
        return bundle_of(kept, costs=self._config.costs, seed=self._config.seed)

    def _check(self, wanted: ChosenBundle) -> None:
        self._built(wanted)

    def close(self) -> None:
        """End its process."""
        if self.steering is not None:
            self.steering.close()


def _log(sentence: str) -> None:
    logger.info("headway: auto: %s", sentence)
