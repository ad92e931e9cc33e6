"""Metrics of the plug-in as a scraper reads them."""

from __future__ import annotations

import re

from headway.scheduling.checked_policies import PolicyFault
from headway.vllm_plugin.plugin_metrics import DESCRIPTIONS, PluginMetrics, SecondsHistogram


def test_metrics_are_what_a_scraper_reads() -> None:
    metrics = PluginMetrics("fcfs", "0")
    metrics.count("preemptions", 2)
    metrics.show("waiting", 7, 'state="queued"')
    for seconds in (0.005, 0.2, 1_000.0):
        metrics.waited("short", seconds)
    lines = metrics.text().splitlines()
    sample = re.compile(r'^headway_\w+\{(\w+="[^"]*",?)+\} [-+.\deInf]+$')
    assert all(sample.match(line) or line.startswith(("# HELP headway_", "# TYPE headway_")) for line in lines)
    labels = 'engine="0",ordering="fcfs"'
    assert f"headway_preemptions_total{{{labels}}} 2" in lines
    assert f'headway_waiting{{{labels},state="queued"}} 7' in lines
    assert f'headway_wait_seconds_bucket{{{labels},length="short",le="0.25"}} 2' in lines
    assert f'headway_wait_seconds_bucket{{{labels},length="short",le="+Inf"}} 3' in lines
    assert f'headway_fallbacks_total{{{labels},reason="raised"}} 0' in lines, "an alarm needs the zero too"
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(
        {line for line in lines if line.startswith("# TYPE")}
    )


def test_every_metric_is_described() -> None:
    metrics = PluginMetrics("fcfs", "0")
    for name in DESCRIPTIONS:
        if not name.endswith("_seconds") or name == "policy_seconds":
            metrics.count(name)
    assert metrics.text()


def test_faults_are_counted_by_reason_and_sums_kept_by_class() -> None:
    metrics = PluginMetrics("fcfs", "0")
    for reason in ("raised", "nonsense", "raised"):
        metrics.policy_fault(PolicyFault("ordering", reason, "failed"))
    metrics.total("steps", 9)
    metrics.count("steps")
    metrics.waited("short", 0.5)
    metrics.waited("long", 2.0)
    metrics.waited("long", 3.0)
    lines = metrics.text().splitlines()
    labels = 'engine="0",ordering="fcfs"'
    assert f'headway_fallbacks_total{{{labels},reason="raised"}} 2' in lines
    assert f'headway_fallbacks_total{{{labels},reason="nonsense"}} 1' in lines
    assert f'headway_fallbacks_total{{{labels},reason="stalled"}} 0' in lines
    assert f"headway_steps_total{{{labels}}} 10" in lines
    assert f'headway_wait_seconds_sum{{{labels},length="long"}} 5' in lines
    assert f'headway_wait_seconds_count{{{labels},length="long"}} 2' in lines
    assert f'headway_wait_seconds_count{{{labels},length="short"}} 1' in lines
    assert metrics.waits["long"].count == 2


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = SecondsHistogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [1, 2, 1]
    assert histogram.sum == 7.0
