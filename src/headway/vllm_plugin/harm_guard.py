"""Do-no-harm guard: while the chosen order has long been worse than FCFS would have been, FCFS rules for a while."""

from __future__ import annotations

from headway.scheduling.harm_judge import HarmJudge, WaitComparison
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.plugin_metrics import PluginMetrics


class HarmGuard:
    """Compares our p99 wait with the live estimate of FCFS's; suspends the policies where ours is worse."""

    def __init__(self, config: PluginConfig, policies: FallbackScheduler, metrics: PluginMetrics) -> None:
        self.comparison = WaitComparison()
        self._ordering = config.ordering
        self._limits = config.guard
        self._policies = policies
        self._metrics = metrics
        self._judge = HarmJudge(config.guard)

    def check(self, now: float) -> None:
        """Once a second: suspend the policies if they have done harm for long, or reinstate them."""
        waits = self.comparison.waits(now)
        self._metrics.show("p99_wait_seconds", waits.ours, 'of="ours"')
        self._metrics.show("p99_wait_seconds", waits.fcfs, 'of="fcfs-estimate"')
        policies, limits = self._policies, self._limits
        if policies.disabled or self._ordering == "fcfs" or not self._judge.check(waits, now):
            return
        if not self._judge.suspends:
            policies.reinstate()
            self.comparison.forget()
            logger.warning("headway: waiting requests are ordered by %s again", self._ordering)
        else:
            policies.suspend()
            self._metrics.count("step_backs")
            logger.error(
                "headway: for %g s the p99 wait under %s was above its limit (now %.2f s, estimated %.2f s first come, "
                "first served); waiting requests are served first come, first served for %g s",
                limits.harm_seconds, self._ordering, waits.ours, waits.fcfs, limits.step_back_seconds,
            )  # fmt: skip
