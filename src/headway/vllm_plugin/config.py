"""Configuration of the plug-in: `--additional-config '{"headway": {...}}'` or `HEADWAY_CONFIG=file.toml`, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeAlias

from headway.config.address import host_and_port
from headway.config.table_reader import TableReader
from headway.config.toml_file import read_toml
from headway.config.typed_values import Bounds, Described, checked, read_table
from headway.domain.costs import ServiceCosts
from headway.policies.catalog import KINDS
from headway.scheduling.bundle import bundle_of, name_and_options
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.offline_gate import OfflineRules
from headway.scheduling.prefill_budget import TPOT_SECONDS
from headway.scheduling.scheduler import Policies
from headway.scheduling.self_tuned_threshold import Tuning
from headway.tuning.tuning_settings import TuningSettings
from headway.twin.auto_settings import AUTO, AutoSettings

VARIABLE = "HEADWAY_CONFIG"
DEFAULT_ORDERING = "highest-response-ratio"
DEFAULT_COSTS = ServiceCosts(1e-4, 2e-2)  # roughly an 8B model on one data-centre GPU; used to weigh lengths only

_AtLeast0: TypeAlias = Annotated[float, Bounds(least=0)]
_Path: TypeAlias = Annotated[str, Described("a path, or an empty text for none")]


@dataclass(frozen=True, slots=True)
class GuardLimits(HarmLimits):
    """When the plug-in falls back to first come, first served: for harm, or for slow policies.

    Attributes:
        budget_ms: time limit for one answer of a policy, and for all its choices of one step together.
        strikes: proven overruns within `strike_seconds` that disable the policies for good (`policy_guard.PolicyTimer`
            defines proven); one overrun of 25 budgets disables them at once.
        strike_seconds: how long a strike counts.
    """

    budget_ms: Annotated[float, Bounds(least=0.01)] = 20.0
    strikes: Annotated[int, Bounds(least=1)] = 3
    strike_seconds: _AtLeast0 = 60.0


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """Whether alike KV blocks of prompts are shared (experimental; `block_sharing`).

    Attributes:
        on: whether they are.
        bound: least cosine of a fused block with what is kept for it, in each layer, in keys and in values. The error
            is at most √(1 − bound²) of the block's length.
        blocks_per_step: blocks looked at in one step, about; the rest waits for the next.
    """

    on: bool = False
    bound: Annotated[float, Bounds(above=0, most=1)] = 0.95
    blocks_per_step: Annotated[int, Bounds(least=1, most=4096)] = 256


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """Everything that can be set; the defaults are safe for any traffic.

    Attributes:
        ordering, admission, preemption, prediction: names of the catalogue.
        options: kind → option → value.
        tuning: "off"; "self-tuned": the plug-in moves the long-prefill threshold before each step; "prefill-budget": it
            moves the token budget, so that steps with decodes and prompts keep to `tpot_seconds`.
        tpot_seconds: most seconds of such a step, under "prefill-budget".
        displace: when a waiting request takes the place of running ones of lower priority; None for never.
        auto: settings of the twin that chooses the order; an ordering "auto" turns it on, and begins with the default.
        live_tuning: settings of the tuner that tries parameters of the ordering on live traffic.
        fusion: whether alike KV blocks of prompts are shared.
        offline_ordering: the order of offline requests, a name of the catalogue.
        offline: how much offline requests may add to a step (`scheduling/offline_gate.py`).
        state_file: file that keeps what the policies learn over restarts; "" keeps nothing. A further engine of the
            same server has a file of its own, with its index in the name.
        prefix_hits: look the prompt up in the prefix cache before ordering.
        hints: read `headway_…` hints from `vllm_xargs`; false ignores them.
        seed: random seed of the policies.
        costs: seconds per token, for orderings that weigh prefill against decode.
        guard: when the plug-in falls back to first come, first served.
        metrics_dir: folder of the metrics file; None chooses one by vLLM's instance id, "" writes none.
        metrics_seconds: how often the file is written.
        decision_log: file for one JSON line per admission; "" writes none.
        why_listen: host and port on which the engine explains why a request waited; None for none. A further engine of
            the same server takes the port plus its index.
        explain_above_seconds: vLLM's log explains waits longer than this.
        length_class_tokens: longest prompts of the classes short and medium in the metrics, tokens.
    """

    ordering: str = DEFAULT_ORDERING
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "running-mean"
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    tuning: Tuning = "off"
    tpot_seconds: Annotated[float, Bounds(above=0, unit="seconds")] = TPOT_SECONDS
    displace: DisplaceRules | None = None
    auto: AutoSettings = field(default_factory=AutoSettings)
    live_tuning: TuningSettings = field(default_factory=TuningSettings)
    fusion: FusionSettings = FusionSettings()
    offline_ordering: str = "fcfs"
    offline: OfflineRules = OfflineRules()  # noqa: RUF009 - frozen
    state_file: _Path = ""
    prefix_hits: bool = True
    hints: bool = True
    seed: Annotated[int, Bounds(least=0)] = 0
    costs: ServiceCosts = DEFAULT_COSTS
    guard: GuardLimits = GuardLimits()
    metrics_dir: _Path | None = None
    metrics_seconds: Annotated[float, Bounds(least=0.05, unit="seconds")] = 1.0
    decision_log: _Path = ""
    why_listen: tuple[str, int] | None = None
    explain_above_seconds: Annotated[float, Bounds(least=0, unit="seconds")] = 10.0
    length_class_tokens: tuple[int, int] = (512, 4096)

    def policies(self) -> Policies:
        """Fresh policies. Raises ValueError, one sentence, for an unknown name or a bad option."""
        return bundle_of(self, costs=self.costs, seed=self.seed, offline_ordering=self.offline_ordering)


def read_config(additional: object, environ: Mapping[str, str] = os.environ) -> PluginConfig:
    """The configuration from vLLM's `additional_config`, else from the file named by HEADWAY_CONFIG, else the default.

    Raises:
        ValueError: one sentence that names the place, the key and the fix.
    """
    given = additional.get("headway") if isinstance(additional, Mapping) else None
    path = environ.get(VARIABLE, "")
    if given is not None and path:
        raise ValueError(f'both {VARIABLE} and additional_config["headway"] are set: keep one of them')
    if path:
        return _parse(read_toml(Path(path), f"{VARIABLE}={path}"), f"{VARIABLE}={path}")
    return PluginConfig() if given is None else _parse(given, 'additional_config["headway"]')


def _parse(given: object, where: str) -> PluginConfig:
    if not isinstance(given, Mapping):
        raise ValueError(f'{where} must be a table such as {{"ordering": "{DEFAULT_ORDERING}"}}, got {given!r}')
    names: dict[str, str] = {}
    options: dict[str, Mapping[str, object]] = {}
    try:
        if "options" in given:
            raise ValueError('options stand beside a name: write {"name": "…", "options": {…}} for the policy')
        for kind in KINDS:
            if kind in given:
                names[kind], options[kind] = name_and_options(kind, given[kind], kind)
        is_auto = names.get("ordering") == AUTO
        if is_auto:
            del names["ordering"]
        config = replace(read_table(PluginConfig, {**given, **names}, readers=_READERS), options=options)
        if is_auto:
            config = replace(config, ordering=DEFAULT_ORDERING, auto=replace(config.auto, on=True))
        if config.auto.on and config.live_tuning.on:
            raise ValueError("auto and live_tuning cannot both be on: leave one of them out")
        if "tpot_seconds" in given and config.tuning != "prefill-budget":
            raise ValueError('tpot_seconds is read under tuning = "prefill-budget" only: set that, or leave it out')
        if config.displace is not None and config.admission != "greedy":
            raise ValueError(
                f'displace needs admission = "greedy": {config.admission} may hold the request that room was made for'
            )
        config.policies()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return config


def _address(value: object, where: str) -> tuple[str, int] | None:
    if value == "":
        return None
    return host_and_port(value, where, port_min=1, otherwise=", or an empty text for none")


def _classes(value: object, where: str) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{where} must be two prompt lengths, such as [512, 4096], got {value!r}")
    short, medium = checked(value, tuple[Annotated[int, Bounds(least=1)], ...], where)
    if short >= medium:
        raise ValueError(f"{where} must rise, such as [512, 4096], got {value!r}")
    return short, medium


def _costs(value: object, where: str) -> ServiceCosts:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a table of {', '.join(ServiceCosts._fields)}, got {value!r}")
    table = TableReader(where, value)
    costs = ServiceCosts(*(table.positive(name) for name in ServiceCosts._fields))
    table.close()
    return costs


def _live_tuning(value: object, where: str) -> TuningSettings:
    if value == "off":
        return TuningSettings()
    if not isinstance(value, Mapping):
        raise ValueError(f'{where} must be "off", or a table such as {{"window_seconds": 600}}, got {value!r}')
    settings = read_table(TuningSettings, {"on": True, **value}, f"{where}.")
    for name in ("window_seconds", "harm"):  # narrower than in the gateway
        checked(getattr(settings, name), Annotated[float, Bounds(least=1)], f"{where}.{name}")
    return settings


def _fusion(value: object, where: str) -> FusionSettings:
    if value == "off":
        return FusionSettings()
    if not isinstance(value, Mapping):
        raise ValueError(f'{where} must be "off", or a table such as {{"bound": 0.95}}, got {value!r}')
    return read_table(FusionSettings, {"on": True, **value}, f"{where}.")


def _offline(value: object, where: str) -> OfflineRules:
    if not isinstance(value, Mapping):
        raise ValueError(f'{where} must be a table such as {{"share": 0.05}}, got {value!r}')
    return read_table(OfflineRules, value, f"{where}.")


def _displace(value: object, where: str) -> DisplaceRules | None:
    if value == "off":
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f'{where} must be "off", or a table such as {{"times": 2}}, got {value!r}')
    return read_table(DisplaceRules, value, f"{where}.")


_READERS = {
    "displace": _displace,
    "offline": _offline,
    "fusion": _fusion,
    "live_tuning": _live_tuning,
    "costs": _costs,
    "why_listen": _address,
    "length_class_tokens": _classes,
}
