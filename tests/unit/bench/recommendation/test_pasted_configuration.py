"""The plug-in that a recommendation's text configures does what was simulated."""

from __future__ import annotations

import tomllib
from dataclasses import asdict

import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.recommendation.candidates import vllm_text
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.simulator.rules import NO_PLUGIN, PluginRules
from headway.vllm_plugin.config import read_config


@pytest.mark.parametrize(
    "plugin",
    [
        NO_PLUGIN,
        PluginRules("self-tuned", guard=HarmLimits(harm_ratio=3.0)),
        PluginRules("prefill-budget", tpot_seconds=0.1),
        PluginRules(displace=DisplaceRules(times=3, cooldown_seconds=0.5)),
    ],
)
def test_the_plugin_gets_every_rule_that_was_simulated(plugin: PluginRules) -> None:
    bundle = Bundle("mine", ordering="fcfs", plugin=plugin)
    config = read_config({"headway": tomllib.loads(vllm_text(bundle))}, environ={})
    assert (config.tuning, config.tpot_seconds, config.displace) == (
        plugin.tuning,
        plugin.tpot_seconds,
        plugin.displace,
    )
    if plugin.guard is not None:
        assert asdict(plugin.guard).items() <= asdict(config.guard).items()
