"""Plug-in metrics in Prometheus' text format. Every name begins with `headway_`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from headway.scheduling.checked_policies import PolicyFault

WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
DECISION_BUCKETS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class SecondsHistogram:
    """Counts by upper bound, seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Number of values observed."""
        return sum(self.counts)


class PluginMetrics:
    """Counters, gauges and histograms by name and label."""

    def __init__(self, ordering: str, engine: str) -> None:
        self._common = {"engine": engine, "ordering": ordering}
        self.counters: dict[tuple[str, str], float] = {}
        self.gauges: dict[tuple[str, str], float] = {}
        self.waits: dict[str, SecondsHistogram] = {}
        self.decisions = SecondsHistogram(DECISION_BUCKETS)
        for name in ("admissions_held", "preemptions", "preempted_tokens", "steps", "step_backs"):
            self.count(name, 0)
        for reason in ("raised", "stalled", "nonsense"):
            self.count("fallbacks", 0, f'reason="{reason}"')

    def count(self, name: str, by: float = 1, label: str = "") -> None:
        """Add to a counter."""
        self.counters[name, label] = self.counters.get((name, label), 0) + by

    def total(self, name: str, value: float, label: str = "") -> None:
        """Set a counter that is counted elsewhere."""
        self.counters[name, label] = value

    def policy_fault(self, fault: PolicyFault) -> None:
        """Count the fault that disabled the policies."""
        self.count("fallbacks", 1, f'reason="{fault.reason}"')

    def show(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge."""
        self.gauges[name, label] = value

    def waited(self, length_class: str, seconds: float) -> None:
        """Count the wait of a request that was admitted for the first time."""
        self.waits.setdefault(length_class, SecondsHistogram(WAIT_BUCKETS)).observe(seconds)

    def text(self) -> str:
        """All metrics, as a scraper reads them."""
        lines: list[str] = []
        lines += self._plain(self.counters, "counter", "_total")
        lines += self._plain(self.gauges, "gauge", "")
        lines += self._histograms("headway_wait_seconds", [(f'length="{n}"', h) for n, h in self.waits.items()])
        lines += self._histograms("headway_decision_seconds", [("", self.decisions)])
        return "\n".join(lines) + "\n"

    def _plain(self, values: dict[tuple[str, str], float], kind: str, end: str) -> Iterable[str]:
        described: set[str] = set()
        for (name, label), value in sorted(values.items()):
            full = f"headway_{name}{end}"
            if name not in described:
                described.add(name)
                yield f"# HELP {full} {DESCRIPTIONS[name]}"
                yield f"# TYPE {full} {kind}"
            yield f"{full}{self._labels(label)} {value:.10g}"

    def _histograms(self, full: str, histograms: Iterable[tuple[str, SecondsHistogram]]) -> Iterable[str]:
        yield f"# HELP {full} {DESCRIPTIONS[full.removeprefix('headway_')]}"
        yield f"# TYPE {full} histogram"
        for label, histogram in histograms:
            below = 0
            for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
                below += count
                edge = f'le="{bound}"'
                yield f"{full}_bucket{self._labels(f'{label},{edge}' if label else edge)} {below}"
            yield f"{full}_sum{self._labels(label)} {histogram.sum:.10g}"
            yield f"{full}_count{self._labels(label)} {below}"

    def _labels(self, label: str) -> str:
        common = ",".join(f'{name}="{value}"' for name, value in self._common.items())
        return "{" + (f"{common},{label}" if label else common) + "}"


DESCRIPTIONS = {
    "admissions_held": "Steps in which the admission policy held the head of the queue.",
    "preemptions": "Preemptions: running requests that lost their KV blocks.",
    "offline_displaced": "Offline requests preempted so that online ones found room, or kept their step time.",
    "offline_waiting": "Offline requests that wait.",
    "backfilled": "Requests admitted past a head of the queue that did not fit.",
    "preempted_tokens": "Tokens that preempted requests had computed; the prefix cache may keep a part.",
    "steps": "Engine steps: calls of schedule().",
    "step_backs": "Times the do-no-harm guard fell back to first come, first served for a while.",
    "fallbacks": "Policy faults that disabled the policies until the engine restarts, by reason.",
    "policy_seconds": "Seconds spent in policies, by kind of policy.",
    "hints_ignored": "Malformed hints of clients, by name.",
    "prefix_lookups": "Prompts looked up in the prefix cache before ordering.",
    "prefix_hit_tokens": "Prompt tokens that those lookups found in the prefix cache.",
    "fusion_on": "1 while alike KV blocks may be fused, 0 after a fault.",
    "fusion_shared_entries": "KV blocks that fused requests do without now: their entries, less the representatives.",
    "fusion_compared_blocks": "KV blocks that were compared with others at their place.",
    "fusion_fused_blocks": "KV blocks that requests gave up for a representative.",
    "fusion_freed_blocks": "KV blocks that became free by it, less those of the representatives.",
    "waiting": "Waiting requests by state: queued, or parked because they cannot run yet.",
    "lanes": "Lanes compared in the latest choice of a request.",
    "stepped_back": "1 while a fault or the do-no-harm guard makes the order first come, first served, else 0.",
    "displaced": "Running requests preempted so that a waiting one of higher priority found room.",
    "step_token_budget": "Most tokens of the latest step, as the tuning prefill-budget set it.",
    "long_prefill_threshold": "Tokens one prefill may take of a step; 0 for no limit.",
    "p99_wait_seconds": "p99 of the seconds from arrival to first admission of the last 1,000 requests: ours, and as "
    "estimated for first come, first served.",
    "wait_seconds": "Seconds from arrival in the engine to first admission, by prompt length class.",
    "decision_seconds": "Seconds of each step spent in this plug-in.",
}
