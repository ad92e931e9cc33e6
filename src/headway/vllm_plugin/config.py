"""What an operator may say, by `--additional-config '{"headway": {...}}'` or `HEADWAY_CONFIG=file.toml`, checked."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from headway.domain.costs import ServiceCosts
from headway.policies.catalog import KINDS, nearest
from headway.scheduling.bundle import bundle, name_and_options
from headway.scheduling.scheduler import Policies
from headway.vllm_plugin.policy_state import TuningTerms

VARIABLE = "HEADWAY_CONFIG"
DEFAULT_ORDERING = "highest-response-ratio"
DEFAULT_COSTS = ServiceCosts(1e-4, 2e-2)  # an 8B model on one data-centre card, roughly; weighs lengths, times nothing


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When policies are put aside.

    Attributes:
        budget_ms: one answer of a policy, and all its choices of one step together, may take this long.
        strikes: proven overruns within `strike_seconds` that put the policies aside for good (`guard.Watch` says what
            proves one); an overrun of 25 budgets does so at once.
        strike_seconds: how long a strike counts.
        harm_ratio: our p99 wait over that of the live FCFS estimate from which on we do harm.
        harm_slack_seconds: and ours must be longer by this too, so that noise among short waits does not count.
        harm_seconds: harm that lasts this long makes us step back to first come, first served.
        step_back_seconds: how long we stay back before the next try.
    """

    budget_ms: float = 20.0
    strikes: int = 3
    strike_seconds: float = 60.0
    harm_ratio: float = 2.0
    harm_slack_seconds: float = 1.0
    harm_seconds: float = 60.0
    step_back_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """Everything that can be set; the defaults are safe for any traffic.

    Attributes:
        ordering, admission, preemption, prediction: names of the catalogue.
        options: kind → option → value.
        tuning: "off", or "self-tuned": long-prefill threshold and active-request cap move by themselves.
        live_tuning: terms of the tuner that tries parameters of the ordering on the traffic; None for none.
        state_file: what the policies learn is kept there over restarts; "" keeps nothing. A further engine of the same
            server has a file of its own, with its index in the name.
        prefix_hits: look the prompt up in the prefix cache before ordering.
        hints: read `headway_…` hints from `vllm_xargs`; off makes every client alike.
        seed: for policies that draw lots.
        costs: seconds per token, for orderings that weigh prefill against decode.
        guard: limits of the safety guard.
        metrics_dir: folder for the metrics file; None chooses one by the engine's instance id, "" writes none.
        metrics_seconds: how often the file is written.
        decision_log: file for one JSON line per admission; "" writes none.
        why_listen: host and port on which the engine answers why a request waited; None answers nobody. A further
            engine of the same server takes the port plus its index.
        explain_above_seconds: waits longer than this are explained in vLLM's log.
        length_class_tokens: upper prompt lengths of the classes short and medium in the metrics.
    """

    ordering: str = DEFAULT_ORDERING
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "running-mean"
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    tuning: str = "off"
    live_tuning: TuningTerms | None = None
    state_file: str = ""
    prefix_hits: bool = True
    hints: bool = True
    seed: int = 0
    costs: ServiceCosts = DEFAULT_COSTS
    guard: GuardLimits = GuardLimits()
    metrics_dir: str | None = None
    metrics_seconds: float = 1.0
    decision_log: str = ""
    why_listen: tuple[str, int] | None = None
    explain_above_seconds: float = 10.0
    length_class_tokens: tuple[int, int] = (512, 4096)

    def policies(self) -> Policies:
        """Fresh policies. Raises ValueError, one sentence, for an unknown name or a bad option."""
        return bundle(
            ordering=self.ordering,
            admission=self.admission,
            preemption=self.preemption,
            prediction=self.prediction,
            options=self.options,
            costs=self.costs,
            seed=self.seed,
        )


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
        return _parse(_read_toml(path), f"{VARIABLE}={path}")
    return PluginConfig() if given is None else _parse(given, 'additional_config["headway"]')


def _read_toml(path: str) -> object:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{VARIABLE}={path}: it cannot be read: {error.strerror}; check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{VARIABLE}={path}: it is not valid TOML: {error}") from None


def _parse(given: object, where: str) -> PluginConfig:
    if not isinstance(given, Mapping):
        raise ValueError(f'{where} must be a table such as {{"ordering": "{DEFAULT_ORDERING}"}}, got {given!r}')
    known = [one.name for one in fields(PluginConfig) if one.name != "options"]
    chosen: dict[str, Any] = {}
    options: dict[str, Mapping[str, object]] = {}
    for key, value in given.items():
        at = f"{where}: {key}"
        if key in KINDS:
            chosen[key], options[key] = _named(at, value)
        elif key in _READERS:
            chosen[key] = _READERS[key](at, value)
        else:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(str(key), known)}")
    config = PluginConfig(options=options, **chosen)
    try:
        config.policies()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return config


def _named(at: str, value: object) -> tuple[str, Mapping[str, object]]:
    named = name_and_options(value)
    if named is None:
        raise ValueError(f'{at} must be a name, or {{"name": "…", "options": {{…}}}}, got {value!r}')
    return named


def _number(at: str, value: object, *, least: float, unit: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= sys.float_info.max:
        raise ValueError(f"{at} must be a number{unit} of at least {least:g}, got {value!r}")
    return float(value)


def _whole(at: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{at} must be a whole number of at least {least}, got {value!r}")
    return value


def _truth(at: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{at} must be true or false, got {value!r}")
    return value


def _text(at: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{at} must be a path, or an empty text for none, got {value!r}")
    return value


def _address(at: str, value: object) -> tuple[str, int] | None:
    if value == "":
        return None
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(
            f'{at} must be "host:port", such as "127.0.0.1:9901", or an empty text for none, got {value!r}'
        )
    return host.strip("[]"), int(port)


def _tuning(at: str, value: object) -> str:
    if value not in ("off", "self-tuned"):
        raise ValueError(f'{at} must be "off" or "self-tuned", got {value!r}')
    return str(value)


def _classes(at: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{at} must be two prompt lengths, such as [512, 4096], got {value!r}")
    short, medium = _whole(at, value[0], 1), _whole(at, value[1], 1)
    if short >= medium:
        raise ValueError(f"{at} must rise, such as [512, 4096], got {value!r}")
    return short, medium


def _table(at: str, value: object, known: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{at} must be a table of {', '.join(known)}, got {value!r}")
    for key in value:
        if key not in known:
            raise ValueError(f"{at}: unknown key {key!r}{nearest(str(key), known)}")
    return {str(key): entry for key, entry in value.items()}


def _costs(at: str, value: object) -> ServiceCosts:
    table = _table(at, value, ServiceCosts._fields)
    for name in ServiceCosts._fields:
        if name not in table:
            raise ValueError(f"{at} lacks {name}: give both, in seconds per token")
    return ServiceCosts(*(_number(f"{at}.{name}", table[name], least=1e-12) for name in ServiceCosts._fields))


def _live_tuning(at: str, value: object) -> TuningTerms | None:
    if value == "off":
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f'{at} must be "off", or a table such as {{"window_seconds": 600}}, got {value!r}')
    known = tuple(one.name for one in fields(TuningTerms))
    return TuningTerms(**_amounts(at, value, known, "trials", {"window_seconds": 1.0, "harm": 1.0}))


def _guard(at: str, value: object) -> GuardLimits:
    known = tuple(one.name for one in fields(GuardLimits))
    return GuardLimits(**_amounts(at, value, known, "strikes", {"budget_ms": 0.01, "harm_ratio": 1.0}))


def _amounts(
    at: str, value: object, known: tuple[str, ...], counted: str, least: Mapping[str, float]
) -> dict[str, Any]:
    """A table of numbers, one of which (`counted`) is whole and at least 1; `least` is 0 where it is not given."""
    return {
        name: _whole(f"{at}.{name}", entry, 1)
        if name == counted
        else _number(f"{at}.{name}", entry, least=least.get(name, 0.0))
        for name, entry in _table(at, value, known).items()
    }


_READERS: dict[str, Callable[[str, object], object]] = {
    "tuning": _tuning,
    "live_tuning": _live_tuning,
    "state_file": _text,
    "prefix_hits": _truth,
    "hints": _truth,
    "seed": lambda at, value: _whole(at, value, 0),
    "costs": _costs,
    "guard": _guard,
    "metrics_dir": _text,
    "metrics_seconds": lambda at, value: _number(at, value, least=0.05, unit=" of seconds"),
    "decision_log": _text,
    "why_listen": _address,
    "explain_above_seconds": lambda at, value: _number(at, value, least=0.0, unit=" of seconds"),
    "length_class_tokens": _classes,
}
