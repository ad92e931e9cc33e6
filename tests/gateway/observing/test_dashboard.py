"""The Grafana dashboard asks for metrics and labels that the gateway really has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import answers

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "headway.json"
LATER = {  # labelled by model, as others are
    "headway_queue_drain_seconds",  # only where a queue has drained for a while
    "headway_replica_stable_requests_per_second",  # only once it is known
}


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "expr" in node:
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_every_query_finds_its_metric_and_labels(run_gateway: RunGateway) -> None:
    asked = list(expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))))
    assert len(asked) > 10

    async def scenario(setup: Setup) -> None:
        await setup.ask()
        setup.replicas[0].next.append(answers(503, {}))
        await setup.ask()
        await setup.until(setup.dispatcher.replicas[0].ages_seconds)
        text = (await setup.get("/metrics")).body.decode()
        labels: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
        for query in asked:
            names = re.findall(r"\b(?:headway|process)_[a-z_]+", query)
            assert names, query
            for name in names:
                assert name in labels or name in LATER, f"{query}: there is no {name}"
                chosen = re.findall(rf"{name}{{([^}}]*)}}", query)
                for label in re.findall(r"(\w+)=~", " ".join(chosen)):
                    assert label in labels.get(name, {"model_name"}), f"{query}: {name} has no label {label}"
                by = re.findall(r"by \(([^)]*)\)", query)
                for label in [one.strip() for listed in by for one in listed.split(",")]:
                    assert label in labels[name], f"{query}: {name} has no label {label}"

    run_gateway(scenario, metrics="vllm:num_requests_waiting 0\n")


def test_every_label_set_is_bounded(run_gateway: RunGateway) -> None:
    """A client that makes names up fills no label: models nobody lists are one, fairness ids are capped."""

    async def scenario(setup: Setup) -> None:
        for number in range(5):
            await setup.ask({"model": f"made-up-{number}", "prompt": "x"})
        text = (await setup.get("/metrics")).body.decode()
        assert "made-up" not in text

    run_gateway(scenario)
