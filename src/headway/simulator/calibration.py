"""Calibration: step times fitted to one engine, as a TOML file, with the error that they left.

name = "my-engine"                    # what tables call it
source = "..."                        # which recording, how many requests of it
error = "..."                         # on requests that the fit did not see; printed beside every result
error_before = "..."                  # with [scalars]: the error of the profile alone

[scalars]                             # either: factors over a built-in profile
hardware = "rtx-4090"
model = "llama-3.1-8b"
tp = 1
precision = "bf16"
step_scale = 1.04
kv_scale = 1.0
prompt_step_scale = 1.0
step_us = 0.0

[linear]                              # or: a model of its own
fixed_us = 5600.0                     # of a step
token_us = 76.0                       # of each token computed
context_token_us = 0.13               # of each token of context that a decode reads
request_us = 500.0                    # of each request that gets a token
pair_us = 0.13                        # of each pair of a prompt token and a token that it attends to

[engine]                              # the limits it ran under; the fields of `EngineRules`
kv_blocks = 63
...
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from headway.config.table_reader import TableReader
from headway.config.toml_file import read_toml
from headway.config.typed_values import read_table
from headway.simulator.hardware import Precision
from headway.simulator.replica import Replica, replica, service_costs
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime, LinearStepTime

_PS_PER_US = 1e6
_LINEAR = ("fixed", "token", "context_token", "request", "pair")


@dataclass(frozen=True, slots=True)
class ProfileUnderScalars:
    """A built-in profile and what to change of it."""

    hardware: str
    model: str
    tp: int
    precision: Precision
    scalars: Scalars


@dataclass(frozen=True, slots=True)
class Calibration:
    """Step times of one engine; the module's text has the fields' meaning."""

    name: str
    source: str
    error: str
    error_before: str
    step_times: ProfileUnderScalars | LinearStepTime
    rules: EngineRules

    def describe(self) -> dict[str, Any]:
        """The facts of `Replica.describe` that this calibration replaces."""
        if isinstance(self.step_times, ProfileUnderScalars):
            return {"step_time_error": self.error, "step_time": "calibrated roofline"}
        return {
            "step_time_error": self.error,
            "hardware": self.name,
            "hardware_title": self.name,
            "model": "its own model",
            "model_title": "",
            "step_time": "linear",
            "hardware_source": f"calibrated to {self.source}",
            "model_source": "",
        }


def calibrated_replica(calibration: Calibration) -> Replica:
    """The replica that was measured: its step times, under its limits.

    Raises:
        ValueError: the profile's card or model is unknown, or they do not go together.
    """
    fitted = calibration.step_times
    if isinstance(fitted, LinearStepTime):
        server = replica()  # stands in for names and shape, of which a linear model needs none
        step_time: FlooredStepTime = fitted
    else:
        server = replica(fitted.hardware, fitted.model, tp=fitted.tp, precision=fitted.precision)
        assert isinstance(server.step_time, FlooredStepTime), "profiles are rooflines"
        step_time = ScaledStepTime(server.step_time, fitted.scalars)
        source = f"{server.hardware.source}; calibrated to {calibration.source}"
        server = replace(server, hardware=replace(server.hardware, source=source))
    costs = service_costs(step_time, calibration.rules)
    return replace(server, rules=calibration.rules, step_time=step_time, costs=costs, measured=calibration.describe())


def calibration_text(calibration: Calibration) -> str:
    """The TOML file's text."""
    head = {name: getattr(calibration, name) for name in ("name", "source", "error", "error_before")}
    fitted = calibration.step_times
    if isinstance(fitted, LinearStepTime):
        values = (fitted.fixed_ps, fitted.ps_per_token, fitted.ps_per_context_token, fitted.ps_per_request)
        pairs = zip(_LINEAR, (*values, fitted.ps_per_pair), strict=True)
        title, table = "linear", {f"{name}_us": ps / _PS_PER_US for name, ps in pairs}
    else:
        named = {name: getattr(fitted, name) for name in ("hardware", "model", "tp", "precision")}
        title, table = "scalars", named | asdict(fitted.scalars)
    limits = {name: value for name, value in calibration.rules.facts().items() if value is not None}
    parts = [("", head), (title, table), ("engine", limits)]
    lines = ["# Step times of one engine, fitted by `headway calibrate`; `headway compare --calibration` reads it."]
    for name, values_of in parts:
        lines += ["", f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values_of.items() if value != ""]
    return "\n".join(lines) + "\n"


def read_calibration(path: Path) -> Calibration:
    """Read what `calibration_text` wrote.

    Raises:
        ValueError: one sentence that names file, key and fix.
    """
    label = f"calibration {path}"
    table = TableReader(label, read_toml(path, label))
    scalars, linear = table.optional_table("scalars"), table.optional_table("linear")
    step_times: ProfileUnderScalars | LinearStepTime
    if scalars is not None and linear is None:
        step_times = _scaled(scalars)
    elif linear is not None and scalars is None:
        step_times = _linear(linear)
    else:
        raise ValueError(f"{label} must have one of the tables [scalars] and [linear]; run `headway calibrate` again")
    calibration = Calibration(
        name=table.text("name"),
        source=table.text("source"),
        error=table.text("error"),
        error_before=table.text("error_before") if "error_before" in table.keys() else "",  # noqa: SIM118 - a method
        step_times=step_times,
        rules=_rules(label, table.table("engine")),
    )
    table.close()
    return calibration


def _scaled(table: TableReader) -> ProfileUnderScalars:
    scalars = Scalars(*(table.number(field.name) for field in fields(Scalars)))
    precision = table.text("precision")
    if precision not in get_args(Precision):
        raise table.fault("precision", f"must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    hardware, model, tp = table.text("hardware"), table.text("model"), table.whole("tp")
    table.close()
    return ProfileUnderScalars(hardware, model, tp, precision, scalars)  # type: ignore[arg-type]


def _linear(table: TableReader) -> LinearStepTime:
    linear = LinearStepTime(*(round(table.number(f"{name}_us") * _PS_PER_US) for name in _LINEAR))
    if linear.fixed_ps < 1:
        raise table.fault("fixed_us", "must be above 0")
    table.close()
    return linear


def _rules(label: str, table: TableReader) -> EngineRules:
    try:
        return read_table(EngineRules, table.values())
    except ValueError as error:
        raise ValueError(f"{label}: engine: {error}") from None
