"""One replica to simulate: a model on GPUs, the engine's limits there, and the duration of its steps.

`replica("h100", "llama-3.1-8b")` is what `vllm serve` would be on that card with its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from headway.domain.costs import ServiceCosts
from headway.simulator.hardware import BYTES, Hardware, Precision, hardware_names
from headway.simulator.hardware import hardware as hardware_profile
from headway.simulator.models import ModelShape, model_names, model_shape
from headway.simulator.roofline import Roofline
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, StepTime

__all__ = ["Replica", "hardware_names", "model_names", "replica"]

_GIB = 1 << 30
_MEMORY_UTILISATION = 0.9  # vLLM's, before it counted graphs: docs/decisions/memory-utilisation.md
_CONTEXT_BYTES = 512 << 20  # CUDA context, communicators, captured graphs
_LOGIT_BYTES = 10  # one logit of one sampled request: BF16, its FP32 copy, the sampler's work space
_ROOMY_SHARE = 0.7  # weights take at most this share of a GPU in the default tensor-parallel degree
_TYPICAL_BATCH = 64
_TYPICAL_CONTEXT_TOKENS = 1_000


@dataclass(frozen=True)
class Replica:
    """What the engine needs to know of one replica, and what reports say of it.

    Attributes:
        hardware: the card.
        model: the model's shape.
        tp: GPUs that share every layer.
        precision: of the weights.
        rules: limits and switches of the engine.
        step_time: how long a step takes.
        costs: seconds per token, for policies that weigh work.
        kv_precision: of the KV cache.
        measured: facts of a calibration that replace the profile's in `describe`; empty without one.
    """

    hardware: Hardware
    model: ModelShape
    tp: int
    precision: Precision
    rules: EngineRules
    step_time: StepTime
    costs: ServiceCosts
    kv_precision: Precision = "bf16"
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV memory of a token, over all of its GPUs."""
        return self.model.kv_bytes_per_token(1, BYTES[self.kv_precision])

    def describe(self) -> dict[str, Any]:
        """The replica in words and numbers for tables, reports and JSON."""
        facts = {
            "hardware": self.hardware.name,
            "hardware_title": self.hardware.title,
            "model": self.model.name,
            "model_title": self.model.title,
            "tp": self.tp,
            "precision": self.precision,
            "kv_precision": self.kv_precision,
            "kv_tokens": self.rules.kv_blocks * self.rules.block_tokens,
            "max_model_tokens": self.rules.context_tokens,
            "max_num_batched_tokens": self.rules.max_num_batched_tokens,
            "max_num_seqs": self.rules.max_num_seqs,
            "async_scheduling": self.rules.async_scheduling,
            "prefix_caching": self.rules.prefix_caching,
            "step_time": "roofline",
            "hardware_profile_version": self.hardware.version,
            "hardware_source": self.hardware.source,
            "model_profile_version": self.model.version,
            "model_source": self.model.source,
            "step_time_error": self.hardware.error + ("" if self.kv_precision == "bf16" else "; FP8 KV not measured"),
        }
        return {**facts, **self.measured}


def replica(
    hardware: str | Path = "h100",
    model: str | Path = "llama-3.1-8b",
    *,
    tp: int | None = None,
    precision: Precision = "bf16",
    kv_precision: Precision = "bf16",
    kv_tokens: int | None = None,
    block_tokens: int | None = None,
    watermark: float | None = None,
    max_model_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    long_prefill_token_threshold: int | None = None,
    long_prefill_token_threshold_adaptive: bool | None = None,
    async_scheduling: bool | None = None,
    prefix_caching: bool | None = None,
    fused_share: float | None = None,
) -> Replica:
    """A replica of `model` on `hardware`, vLLM's defaults wherever nothing is given.

    Args:
        hardware: name of a card, or a TOML file with the same keys.
        model: name of a model, or a TOML file with the same keys.
        tp: tensor-parallel degree; by default the smallest at which weights fill at most 70 % of each GPU.
        precision: of the weights, "bf16" or "fp8".
        kv_precision: of the KV cache, likewise.
        kv_tokens: KV cache in tokens, instead of what memory leaves (90 % of it, less weights and activations).
        block_tokens: tokens in a KV block; this and all that follow are fields of `EngineRules`.
        max_model_tokens: longest request, instead of the model's own limit.
        max_num_seqs: requests that run at once, instead of vLLM's default on the card.
        max_num_batched_tokens: token budget of a step, likewise.
        watermark, long_prefill_token_threshold, long_prefill_token_threshold_adaptive, async_scheduling,
            prefix_caching, fused_share: likewise.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    card, shape = hardware_profile(hardware), model_shape(model)
    for name, value in (("precision", precision), ("kv_precision", kv_precision)):
        if value not in get_args(Precision):
            raise ValueError(f"{name} must be one of {', '.join(get_args(Precision))}, got {value!r}")
    if precision not in card.gemm:
        raise ValueError(f"{card.name} has no {precision} figures: use precision {', '.join(card.gemm)}")
    budget = max_num_batched_tokens if max_num_batched_tokens is not None else card.max_num_batched_tokens
    given = {
        "block_tokens": block_tokens,
        "watermark": watermark,
        "max_model_tokens": shape.max_model_tokens if max_model_tokens is None else max_model_tokens,
        "max_num_seqs": min(card.max_num_seqs, budget) if max_num_seqs is None else max_num_seqs,
        "max_num_batched_tokens": budget,
        "long_prefill_token_threshold": long_prefill_token_threshold,
        "long_prefill_token_threshold_adaptive": long_prefill_token_threshold_adaptive,
        "async_scheduling": async_scheduling,
        "prefix_caching": prefix_caching,
        "fused_share": fused_share,
    }
    limits = changed_rules(EngineRules(kv_blocks=1), given)
    degree = _default_tp(card, shape, precision) if tp is None else tp
    _check_tp(card, shape, degree)
    if kv_tokens is None:
        kv_tokens = _kv_tokens(_Parts(card, shape, precision, kv_precision), degree, limits)
    elif kv_tokens < limits.block_tokens:
        raise ValueError(f"kv_tokens must be at least one block of {limits.block_tokens}, got {kv_tokens}")
    rules = replace(limits, kv_blocks=kv_tokens // limits.block_tokens)
    step_time = Roofline(card, shape, degree, precision, kv_precision)
    return Replica(card, shape, degree, precision, rules, step_time, service_costs(step_time, rules), kv_precision)


def changed_rules(rules: EngineRules, given: Mapping[str, Any]) -> EngineRules:
    """The rules with those fields that are given; None leaves a field as it is."""
    return replace(rules, **{name: value for name, value in given.items() if value is not None})


def service_costs(step_time: StepTime, rules: EngineRules) -> ServiceCosts:
    """Seconds per token: a step full of one prompt, and a decode step of 64 requests with 1,000 tokens of context."""
    prefill_tokens = rules.max_num_batched_tokens
    prefill = step_time.mixed_step(0, 0, ((prefill_tokens, 0),), 1)
    batch = min(_TYPICAL_BATCH, rules.max_num_seqs)
    fixed, slope = step_time.decode_step(batch)
    return ServiceCosts(
        prefill_seconds_per_token=prefill / prefill_tokens / PS_PER_SECOND,
        decode_seconds_per_token=(fixed + slope * batch * _TYPICAL_CONTEXT_TOKENS) / PS_PER_SECOND,
    )


def _default_tp(card: Hardware, shape: ModelShape, precision: Precision) -> int:
    """The smallest degree at which weights leave room, or the largest there is."""
    degrees = [tp for tp in card.gpu_counts if shape.heads % tp == 0]
    for tp in degrees:
        if _weight_bytes(shape, precision) / tp <= _ROOMY_SHARE * card.memory_gib * _GIB:
            return tp
    return degrees[-1]


def _check_tp(card: Hardware, shape: ModelShape, tp: int) -> None:
    if tp not in card.gpu_counts:
        raise ValueError(f"tp {tp} is not known for {card.name}: use one of {', '.join(map(str, card.gpu_counts))}")
    if shape.heads % tp:
        raise ValueError(f"tp {tp} must divide the {shape.heads} attention heads of {shape.name}")


class _Parts(NamedTuple):
    """What takes memory: a model in some precision on a card."""

    card: Hardware
    shape: ModelShape
    precision: Precision
    kv_precision: Precision


def _kv_tokens(parts: _Parts, tp: int, limits: EngineRules) -> int:
    """KV tokens that fit on `tp` GPUs. Raises ValueError, with the fix, where none do."""
    tokens = _room(parts, tp, limits)
    if tokens >= limits.block_tokens:
        return tokens
    card, shape, precision, _ = parts

    def fits(other_tp: int, other: Precision) -> bool:
        return _room(parts._replace(precision=other), other_tp, limits) >= limits.block_tokens

    degrees = [other for other in card.gpu_counts if other > tp and shape.heads % other == 0 and fits(other, precision)]
    fixes = [f"tp {' or '.join(map(str, degrees))}"] if degrees else []
    if precision == "bf16" and "fp8" in card.gemm and fits(tp, "fp8"):
        fixes.append("precision fp8")
    weights = _weight_bytes(shape, precision) / tp / _GIB
    step = _step_bytes(shape, tp, limits) / _GIB
    raise ValueError(
        f"{shape.name} in {precision} does not fit on {tp} × {card.name}: weights take {weights:.1f} GiB and a step "
        f"{step:.1f} GiB of the {card.memory_gib * _MEMORY_UTILISATION:.1f} GiB usable on each GPU; "
        f"use {' or '.join([*fixes, 'a card with more memory'])}"
    )


def _room(parts: _Parts, tp: int, limits: EngineRules) -> int:
    """KV tokens that fit beside weights and the largest step; not positive where those alone are too much."""
    card, shape, precision, kv_precision = parts
    usable = int(card.memory_gib * _GIB * _MEMORY_UTILISATION)
    left = usable - _weight_bytes(shape, precision) // tp - _step_bytes(shape, tp, limits)
    return left // shape.kv_bytes_per_token(tp, BYTES[kv_precision])


def _step_bytes(shape: ModelShape, tp: int, limits: EngineRules) -> int:
    """Memory of the largest step on one GPU, which vLLM measures at start; an estimate here.

    Gate, up and product of the MLP and eight copies of the residual stream for every token of the budget, logits of
    every seat, and half a GiB for the context. On the one published run that recorded its blocks (Llama-3.1-8B on an
    RTX 4090: 2,588) the memory left then gives 2,610.
    """
    inner = shape.mlp_parameters // (3 * shape.hidden) * (shape.experts.active if shape.experts else 1)
    activations = 2 * limits.max_num_batched_tokens * (3 * inner // tp + 8 * shape.hidden)
    return activations + _LOGIT_BYTES * limits.max_num_seqs * shape.vocab + _CONTEXT_BYTES


def _weight_bytes(shape: ModelShape, precision: Precision) -> int:
    return shape.weight_bytes(BYTES[precision])
