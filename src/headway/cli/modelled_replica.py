"""The simulated replica that the command line describes: a GPU and a model, or a calibration file, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.bench.user_mistake import UserMistake
from headway.cli.command_options import DEFAULT_HARDWARE, DEFAULT_MODEL, Precision, PrefixCaching, ReplicaOptions
from headway.simulator.calibration import calibrated_replica, read_calibration
from headway.simulator.replica import Replica, changed_rules, replica

# None: a calibration's own, or vLLM's default, which is on.
_PREFIX_CACHING = {PrefixCaching.auto: None, PrefixCaching.on: True, PrefixCaching.off: False}


def modelled_replica(options: ReplicaOptions) -> Replica:
    """The replica as calibrated, or of a GPU and a model.

    Raises:
        UserMistake: options contradict each other.
        ValueError: a profile is unknown or broken, a limit is wrong, or the model does not fit the GPU.
    """
    if options.long_prefill_token_threshold_adaptive and not options.long_prefill_token_threshold:
        raise UserMistake(
            "--long-prefill-token-threshold-adaptive raises --long-prefill-token-threshold, which is 0: give that too"
        )
    limits: dict[str, Any] = {
        "watermark": options.watermark,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "long_prefill_token_threshold": options.long_prefill_token_threshold,
        "long_prefill_token_threshold_adaptive": options.long_prefill_token_threshold_adaptive or None,
        "async_scheduling": options.async_scheduling,
        "prefix_caching": _PREFIX_CACHING[options.prefix_caching],
        "fused_share": options.fused_share,
    }
    if options.calibration is not None:
        return _calibrated(options, options.calibration, limits)
    return replica(
        options.hardware,
        options.model,
        tp=options.tp,
        precision=options.precision.value,
        kv_precision=options.kv_precision.value,
        kv_tokens=options.kv_tokens,
        block_tokens=options.block_tokens,
        **limits,
    )


def profile_files(options: ReplicaOptions) -> list[str]:
    """Every file that describes the replica."""
    profiles = [name for name in (options.hardware, options.model) if name.endswith(".toml")]
    return profiles if options.calibration is None else [*profiles, str(options.calibration)]


def whole_blocks(kv_tokens: int, block_tokens: int) -> int:
    """KV blocks in so many tokens. Raises UserMistake if that is less than one block."""
    if kv_tokens < block_tokens:
        raise UserMistake(f"--kv-tokens must be at least one block of {block_tokens}, got {kv_tokens}")
    return kv_tokens // block_tokens


def _calibrated(options: ReplicaOptions, calibration: Path, limits: Mapping[str, Any]) -> Replica:
    """The engine of the calibration file. Limits on the command line replace those of the file."""
    named = (options.hardware, options.model, options.tp, options.precision, options.kv_precision)
    if named != (DEFAULT_HARDWARE, DEFAULT_MODEL, None, Precision.bf16, Precision.bf16):
        raise UserMistake(
            "--calibration says which GPU and model were measured; leave --hardware, --model, --tp, --precision, "
            "--kv-precision out"
        )
    server = calibrated_replica(read_calibration(calibration))
    rules = server.rules
    block_tokens = options.block_tokens or rules.block_tokens
    kv_tokens = options.kv_tokens or rules.kv_blocks * rules.block_tokens
    memory = {"block_tokens": block_tokens, "kv_blocks": whole_blocks(kv_tokens, block_tokens)}
    return replace(server, rules=changed_rules(rules, {**memory, **limits}))
