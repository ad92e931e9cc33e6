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


def test_the_whole_text_by_hand() -> None:
    metrics = PluginMetrics("fcfs", "3")
    metrics.waited("long", 0.25)
    metrics.waited("long", 601.0)
    metrics.decisions.observe(2e-5)
    metrics.decisions.observe(0.5)
    metrics.show("lanes", 2)
    metrics.show("waiting", 4, 'state="queued"')
    metrics.show("waiting", 1, 'state="parked"')
    common = 'engine="3",ordering="fcfs"'
    counters = [
        ("admissions_held", "Steps in which the admission policy held the head of the queue.", [""]),
        (
            "fallbacks",
            "Policy faults that disabled the policies until the engine restarts, by reason.",
            [',reason="nonsense"', ',reason="raised"', ',reason="stalled"'],
        ),
        ("preempted_tokens", "Tokens that preempted requests had computed; the prefix cache may keep a part.", [""]),
        ("preemptions", "Preemptions: running requests that lost their KV blocks.", [""]),
        ("step_backs", "Times the do-no-harm guard fell back to first come, first served for a while.", [""]),
        ("steps", "Engine steps: calls of schedule().", [""]),
    ]
    expected = []
    for name, about, labels in counters:
        expected += [f"# HELP headway_{name}_total {about}", f"# TYPE headway_{name}_total counter"]
        expected += [f"headway_{name}_total{{{common}{label}}} 0" for label in labels]
    waits = ["0.01", "0.05", "0.1"]
    later = ["0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0", "120.0", "300.0", "600.0"]
    long = f'{common},length="long"'
    fast = ["1e-05"], ["3e-05", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1"]
    expected += [
        "# HELP headway_lanes Lanes compared in the latest choice of a request.",
        "# TYPE headway_lanes gauge",
        f"headway_lanes{{{common}}} 2",
        "# HELP headway_waiting Waiting requests by state: queued, or parked because they cannot run yet.",
        "# TYPE headway_waiting gauge",
        f'headway_waiting{{{common},state="parked"}} 1',
        f'headway_waiting{{{common},state="queued"}} 4',
        "# HELP headway_wait_seconds Seconds from arrival in the engine to first admission, by prompt length class.",
        "# TYPE headway_wait_seconds histogram",
        *[f'headway_wait_seconds_bucket{{{long},le="{bound}"}} 0' for bound in waits],
        *[f'headway_wait_seconds_bucket{{{long},le="{bound}"}} 1' for bound in later],
        f'headway_wait_seconds_bucket{{{long},le="+Inf"}} 2',
        f"headway_wait_seconds_sum{{{long}}} 601.25",
        f"headway_wait_seconds_count{{{long}}} 2",
        "# HELP headway_decision_seconds Seconds of each step spent in this plug-in.",
        "# TYPE headway_decision_seconds histogram",
        *[f'headway_decision_seconds_bucket{{{common},le="{bound}"}} 0' for bound in fast[0]],
        *[f'headway_decision_seconds_bucket{{{common},le="{bound}"}} 1' for bound in fast[1]],
        f'headway_decision_seconds_bucket{{{common},le="+Inf"}} 2',
        f"headway_decision_seconds_sum{{{common}}} 0.50002",
        f"headway_decision_seconds_count{{{common}}} 2",
    ]
    assert metrics.text() == "\n".join(expected) + "\n"
