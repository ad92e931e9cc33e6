"""The replica that a comparison simulates."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from headway.bench.user_mistake import UserMistake, as_mistakes, whole
from headway.simulator.calibration import calibrated_replica, read_calibration
from headway.simulator.replica import Replica, changed_rules
from headway.simulator.replica import replica as simulated_replica


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """One engine with its GPUs. What is None is the engine's default for this GPU and model.

    Attributes:
        hardware: a GPU profile by name, or a TOML file.
        model: a model profile by name, or a TOML file.
        calibration: a file of `headway calibrate`, in place of hardware and model.
        tp: GPUs that the model is spread over (tensor parallel).
        precision: number format of the weights.
        kv_precision: number format of the KV cache.
        kv_tokens: KV memory in tokens, in place of what fits.
        block_tokens: tokens in a KV block.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: most tokens of a step.
        max_model_tokens: longest request.
        long_prefill_token_threshold: most prompt tokens of one request in a step; 0 for no bound.
        async_scheduling: whether a step is planned while the one before runs.
        prefix_caching: whether the engine keeps KV blocks for equal prefixes.
    """

    hardware: str | os.PathLike[str] = "h100"
    model: str | os.PathLike[str] = "llama-3.1-8b"
    calibration: str | os.PathLike[str] | None = None
    tp: int | None = None
    precision: Literal["bf16", "fp8"] = "bf16"
    kv_precision: Literal["bf16", "fp8"] = "bf16"
    kv_tokens: int | None = None
    block_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    async_scheduling: bool | None = None
    prefix_caching: bool | None = None

    def __post_init__(self) -> None:
        self.simulated()

    def simulated(self) -> Replica:
        """What the simulator runs.

        Raises:
            UserMistake: a profile is unknown or broken, a limit is wrong, the model does not fit the GPUs, or
                `calibration` stands beside what it replaces.
        """
        for name in _WHOLE:
            if (value := getattr(self, name)) is not None:
                whole(name, value)
        for name in _SWITCHES:
            if not isinstance(value := getattr(self, name), bool | None):
                raise UserMistake(f"{name}: {value!r} is neither True nor False")
        for name in ("hardware", "model"):
            if not isinstance(value := getattr(self, name), str | os.PathLike):
                raise UserMistake(f"{name}: {value!r} is neither the name of a profile nor a file")
        limits: dict[str, Any] = {name: getattr(self, name) for name in _LIMITS}
        if self.calibration is not None:
            return self._calibrated(limits)
        with as_mistakes():
            return simulated_replica(
                _named(self.hardware),
                _named(self.model),
                tp=self.tp,
                precision=self.precision,
                kv_precision=self.kv_precision,
                kv_tokens=self.kv_tokens,
                block_tokens=self.block_tokens,
                **limits,
            )

    def _calibrated(self, limits: dict[str, Any]) -> Replica:
        defaults = {field.name: field.default for field in fields(self)}
        for name in (*_MEASURED, "kv_tokens", "block_tokens"):
            if getattr(self, name) != defaults[name]:
                raise UserMistake(f"calibration says what was measured; leave {name} out")
        with as_mistakes():
            server = calibrated_replica(read_calibration(Path(str(self.calibration))))
            return replace(server, rules=changed_rules(server.rules, limits))


_MEASURED = ("hardware", "model", "tp", "precision", "kv_precision")
_SWITCHES = ("async_scheduling", "prefix_caching")
_WHOLE = (
    "tp",
    "kv_tokens",
    "block_tokens",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_tokens",
    "long_prefill_token_threshold",
)
_LIMITS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_tokens",
    "long_prefill_token_threshold",
    "async_scheduling",
    "prefix_caching",
)


def _named(profile: str | os.PathLike[str]) -> str | Path:
    return profile if isinstance(profile, str) else Path(profile)
