"""docs/metrics.md lists the metrics that a gateway serves, with their labels, and its alerts ask for those only."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parsed

from headway.gateway.settings import BatchSettings, LeaseSettings, PolicySettings
from headway.gateway.settings_page import render
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import answers

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
RULES = Path(__file__).parents[3] / "docs" / "grafana" / "alerts.yml"
ROW = re.compile(r"^\| `((?:headway|process)_\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
ROWS = {name: (set(re.findall(r"`(\w+)`", labels)), meaning) for name, labels, meaning in ROW.findall(PAGE)}


def test_every_metric_has_its_row(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.ask()
        setup.replicas[0].next.append(answers(503, {}))
        await setup.ask()
        await setup.ask(b"{")
        await setup.ask({}, "/v1/batches")
        await setup.until(setup.dispatcher.replicas[0].ages_seconds)
        text = (await setup.get("/metrics")).body.decode()
        heads = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
        assert ROWS.keys() == heads.keys()
        for name, meaning in heads.items():
            assert ROWS[name][1].removesuffix(" (histogram)") == meaning
        for family in parsed(text):
            for sample in family.samples:
                name = sample.name if sample.name in ROWS else re.sub(r"_(bucket|count|sum)$", "", sample.name)
                assert sample.labels.keys() - {"le"} == ROWS[name][0], name

    lease = LeaseSettings(file=str(tmp_path / "lease"))
    batches, policies = BatchSettings(folder=str(tmp_path)), PolicySettings(ordering="auto")
    run_gateway(scenario, metrics="vllm:num_requests_waiting 0\n", lease=lease, batches=batches, policies=policies)


def test_alerts_ask_for_metrics_and_labels_of_the_page() -> None:
    rules = RULES.read_text(encoding="utf-8")
    asked = re.findall(r"\b((?:headway|process)_\w+)(?:\{(\w+)=)?", rules)
    assert len(asked) > 15
    for name, label in asked:
        assert name in ROWS
        assert not label or label in ROWS[name][0]


def test_bounds_are_keys_of_the_configuration() -> None:
    bounds = PAGE.partition("## Every bound")[2].partition("## What to alert on")[0]
    named = {
        key.rpartition(".")[2]
        for key in re.findall(r"^\| (.*?) \|", bounds, re.MULTILINE)[2:]
        for key in re.findall(r"`([\w.]+)", key)
    }
    known = set(re.findall(r"^\| `(\w+)` \|", render(), re.MULTILINE))
    assert len(named) > 15
    assert {name for name in named if not name.endswith("_")} <= known
