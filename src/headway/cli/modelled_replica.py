"""The simulated replica that the command line describes: a GPU and a model, or a calibration file, and its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headway.bench.user_mistake import UserMistake
from headway.cli.command_options import DEFAULT_HARDWARE, DEFAULT_MODEL, Precision, PrefixCaching, ReplicaOptions
from headway.simulator.calibration import calibrated_replica, read_calibration
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import EngineRules
from headway.simulator.trace import Trace

_BLOCK_TOKENS = EngineRules(kv_blocks=1).block_tokens


def modelled_replica(options: ReplicaOptions, prefix_caching: bool) -> Replica:
    """The replica as calibrated, or of a GPU and a model.

    Raises:
        UserMistake: options contradict each other.
        ValueError: a profile is unknown or broken, or the model does not fit the GPU.
    """
    if options.calibration is not None:
        return _calibrated(options, prefix_caching)
    return replica(
        options.hardware,
        options.model,
        tp=options.tp,
        precision=options.precision.value,
        kv_tokens=options.kv_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        async_scheduling=options.async_scheduling,
        prefix_caching=prefix_caching,
    )


def profile_files(options: ReplicaOptions) -> list[str]:
    """Every file that describes the replica."""
    profiles = [name for name in (options.hardware, options.model) if name.endswith(".toml")]
    return profiles if options.calibration is None else [*profiles, str(options.calibration)]


def caches_prefixes(asked: PrefixCaching, trace: Trace) -> bool:
    """Whether the replica has a prefix cache.

    Raises:
        UserMistake: the trace's prefix blocks are no multiple of the replica's.
    """
    if asked is PrefixCaching.off:
        return False
    if trace.prefix_ids is not None and trace.prefix_block_tokens % _BLOCK_TOKENS:
        raise UserMistake(
            f"{trace.name}: its prefix blocks hold {trace.prefix_block_tokens} tokens, which is no multiple of the "
            f"replica's {_BLOCK_TOKENS}; give --prefix-caching off"
        )
    return True


def whole_blocks(kv_tokens: int, block_tokens: int) -> int:
    """KV blocks in so many tokens. Raises UserMistake if that is less than one block."""
    if kv_tokens < block_tokens:
        raise UserMistake(f"--kv-tokens must be at least one block of {block_tokens}, got {kv_tokens}")
    return kv_tokens // block_tokens


def _calibrated(options: ReplicaOptions, prefix_caching: bool) -> Replica:
    """The engine of the calibration file. Limits on the command line replace those of the file."""
    assert options.calibration is not None
    named = (options.hardware, options.model, options.tp, options.precision)
    if named != (DEFAULT_HARDWARE, DEFAULT_MODEL, None, Precision.bf16):
        raise UserMistake(
            "--calibration says which GPU and model were measured; leave --hardware, --model, --tp, --precision out"
        )
    server = calibrated_replica(read_calibration(options.calibration))
    limits = {
        "kv_blocks": options.kv_tokens and whole_blocks(options.kv_tokens, server.rules.block_tokens),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "async_scheduling": options.async_scheduling,
        "prefix_caching": prefix_caching,
    }
    changes: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return replace(server, rules=replace(server.rules, **changes))
