"""Metrics of the plug-in as a scraper reads them."""

from __future__ import annotations

import re

from headway.vllm_plugin.plugin_metrics import DESCRIPTIONS, PluginMetrics


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
