"""Reporter: what operators see of the plug-in: metrics, explained waits in the log, the decision log."""

from __future__ import annotations

import json
from collections.abc import Iterable

from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.publishing import Publisher
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.wait_explanations import WaitExplanations

_EXPLAINED_PER_SECOND = 10


class Reporter:
    """Counts and explains; `publisher` carries it out of the engine process."""

    def __init__(
        self, config: PluginConfig, policies: FallbackScheduler, metrics: PluginMetrics, publisher: Publisher
    ) -> None:
        self.explanations = WaitExplanations(config.offline_ordering)
        self._config = config
        self._policies = policies
        self._metrics = metrics
        self._publisher = publisher
        self._explained = 0  # in this second

    @property
    def order(self) -> str:
        """Name of the ordering in force."""
        return self._config.ordering if self._policies.in_force else "fcfs"

    def hints_ignored(self, names: Iterable[str]) -> None:
        """Count malformed hints."""
        for name in names:
            self._metrics.count("hints_ignored", 1, f'hint="{name}"')

    def admitted(self, entry: Entry, now: float) -> None:
        """A request was admitted for the first time: count its wait; explain it if it was long."""
        view, config = entry.view, self._config
        waited = now - view.arrived_at
        self._metrics.waited(_length_class(view.prompt_tokens, config.length_class_tokens), waited)
        explanation = self.explanations.admitted(entry, self.order, now)
        to_log = waited >= config.explain_above_seconds and self._explained < _EXPLAINED_PER_SECOND
        if to_log or self._publisher.logs_decisions:
            facts = self.explanations.facts(explanation)
            if to_log:
                self._explained += 1
                logger.info("headway: request %s %s", explanation.request_id, facts["why"])
            if self._publisher.logs_decisions:
                self._publisher.decision(json.dumps(facts))

    def begin_second(self) -> None:
        """Allow the log its explanations of another second."""
        self._explained = 0

    def publish(self) -> None:
        """Hand the metrics over to be written."""
        self._publisher.metrics(self._metrics.text())


def _length_class(prompt_tokens: int, bounds: tuple[int, int]) -> str:
    short, medium = bounds
    if prompt_tokens <= short:
        return "short"
    return "medium" if prompt_tokens <= medium else "long"
