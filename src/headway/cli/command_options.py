"""The options that several verbs share: each one's name, type, default and help, once.

A verb takes them one by one, by the aliases, or as a group, by the dataclasses (see `grouped_options`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from headway.cli.name_completion import complete_hardware, complete_model, complete_trace, policies_of

DEFAULT_SLO = "ttft=2s,tpot=100ms"
DEFAULT_HARDWARE, DEFAULT_MODEL = "h100", "llama-3.1-8b"
ORDERING = ("--ordering", "--policy")
"""The option's name, as in every configuration file, and its synonym."""


class OverContext(StrEnum):
    """What to do with requests longer than the replica can hold."""

    error = "error"
    refuse = "refuse"
    cut = "cut"


class Precision(StrEnum):
    """Number format of weights or KV cache."""

    bf16 = "bf16"
    fp8 = "fp8"


class QueueOption(StrEnum):
    """Where the requests of a fleet wait."""

    gateway = "gateway"
    replicas = "replicas"


class PrefixCaching(StrEnum):
    """Whether the replica keeps the KV blocks of finished prompts."""

    auto = "auto"
    on = "on"
    off = "off"


# ── what traffic ──

Traces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        help="Trace files, or built-in workloads (`headway workloads`). Each is replayed in turn.",
        show_default=False,
        autocompletion=complete_trace,
    ),
]
Seed: TypeAlias = Annotated[
    int, typer.Option(min=0, metavar="N", help="Seed of everything random: workloads, policies, noise.")
]
Requests: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first N requests of each trace.", show_default=False)
]
SkipBadLines: TypeAlias = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Skip lines that cannot be read, and say how many.")
]
Columns: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MAP",
        help="Which field holds what, for a file of unknown format: arrival_ms=t,prompt=in,output=out.",
    ),
]
Load: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Scale arrivals to this share of the replica's saturation throughput, for example 0.9. By default a "
        "trace keeps its own arrival times, and a built-in workload runs at 0.9.",
    ),
]


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How traces are read and workloads drawn."""

    seed: Seed = 0
    requests: Requests = None
    skip_bad_lines: SkipBadLines = False
    columns: Columns = None
    adapters: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Give each session, else each request, one of N LoRA adapters, by Zipf's law; where a trace names "
            "none.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """At which loads the traffic is replayed."""

    load: Load = None
    loads: Annotated[
        str | None, typer.Option(metavar="SHARE,…", help="Sweep over several loads, for example 0.5,0.7,0.9,1.1.")
    ] = None
    open_loop: Annotated[
        bool,
        typer.Option("--open-loop", help="Replay sessions at their recorded times, without waiting for answers."),
    ] = False


# ── which replica ──

TensorParallel: TypeAlias = Annotated[
    int | None, typer.Option("--tp", min=1, metavar="N", help="GPUs of one replica (tensor parallel).")
]
PrecisionOption: TypeAlias = Annotated[Precision, typer.Option(help="Number format of the weights.")]
KvTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="KV memory in tokens, instead of what fits the GPU.")
]
AsyncScheduling: TypeAlias = Annotated[
    bool | None,
    typer.Option("--async/--sync", help="Schedule the next step before this step's outputs are known (default)."),
]
MaxNumSeqs: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Most requests that run at once (as in vLLM).")
]
BlockTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens in a KV block (vLLM's --block-size); 16 by default.")
]
Watermark: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of the KV blocks that admission leaves free (as in vLLM); 0 by default."),
]
FusedShare: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="KV-block fusion: share of prompt blocks that one tenant's prompts have in common. Needs --sync and "
        "--prefix-caching off.",
    ),
]
MaxNumBatchedTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Token budget of one step (as in vLLM).")
]


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """The simulated replica: hardware and model, memory, limits."""

    hardware: Annotated[
        str,
        typer.Option(metavar="NAME", help="GPU profile, or your own TOML file.", autocompletion=complete_hardware),
    ] = DEFAULT_HARDWARE
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model profile, or your own TOML file.", autocompletion=complete_model)
    ] = DEFAULT_MODEL
    tp: TensorParallel = None
    precision: PrecisionOption = Precision.bf16
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Step times and limits measured by `headway calibrate`, instead of --hardware and --model.",
            show_default=False,
        ),
    ] = None
    kv_precision: Annotated[
        Precision, typer.Option(help="Number format of the KV cache (vLLM's --kv-cache-dtype).")
    ] = Precision.bf16
    kv_tokens: KvTokens = None
    block_tokens: BlockTokens = None
    watermark: Watermark = None
    over_context: Annotated[
        OverContext,
        typer.Option(
            help="Requests longer than the replica can hold: stop with an error, count them as refused, or cut them."
        ),
    ] = OverContext.error
    prefix_caching: Annotated[
        PrefixCaching,
        typer.Option(
            help="Prefix cache. auto: on as in vLLM, or as calibrated. Prompts share blocks if the trace says so."
        ),
    ] = PrefixCaching.auto
    fused_share: FusedShare = None
    async_scheduling: AsyncScheduling = None
    max_num_seqs: MaxNumSeqs = None
    max_num_batched_tokens: MaxNumBatchedTokens = None
    long_prefill_token_threshold: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Most tokens of one prompt in one step (as in vLLM); 0 for no limit."),
    ] = None
    long_prefill_token_threshold_adaptive: Annotated[
        bool,
        typer.Option(
            "--long-prefill-token-threshold-adaptive",
            help="Raise that limit to an equal share of the step where this is more (as in vLLM).",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Several replicas in place of one, and how requests come to them."""

    replicas: Annotated[
        int | None, typer.Option(metavar="N", help="Simulate N equal replicas. Load 1 is what all of them serve.")
    ] = None
    fleet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Simulate unequal replicas, a table [[replica]] for each kind (docs/fleet.md); they may fail.",
            show_default=False,
        ),
    ] = None
    routing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A routing policy to compare; repeatable. `all` for every one. Default: least-work.",
            autocompletion=policies_of("routing", "all"),
        ),
    ] = None
    rescheduling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A rescheduling policy to compare: which requests go elsewhere after they were sent; repeatable. "
            "`all` for every one. Default: none moves.",
            autocompletion=policies_of("rescheduling", "all"),
        ),
    ] = None
    migration_gib: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="GiB per second at which KV memory is copied between replicas, for --rescheduling migrate. "
            "Default: 7.45 (64 Gb/s).",
            show_default=False,
        ),
    ] = None
    queue: Annotated[
        QueueOption | None,
        typer.Option(
            help="Where requests wait. gateway: in one queue in front, as in `headway serve` (default). replicas: "
            "each is sent to a replica on arrival.",
            show_default=False,
        ),
    ] = None
    signal_age: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Show routing figures that replicas report so often (1s, 500ms), instead of exact ones.",
            show_default=False,
        ),
    ] = None


# ── which policies ──


Prediction: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Output length predictor of all runs. `oracle` knows the true lengths: a bound, not for production.",
        autocompletion=policies_of("prediction"),
    ),
]


@dataclass(frozen=True, slots=True)
class OtherPolicies:
    """The policies beside the ordering, the same in all runs."""

    admission: Annotated[
        str,
        typer.Option(metavar="NAME", help="Admission policy of all runs.", autocompletion=policies_of("admission")),
    ] = "greedy"
    prediction: Prediction = "running-mean"
    preemption: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which request is preempted when memory is short.",
            autocompletion=policies_of("preemption"),
        ),
    ] = "latest-admitted"


@dataclass(frozen=True, slots=True)
class GatewayPolicies(OtherPolicies):
    """The same with the gateway's own defaults, for a configuration that is to be pasted there."""

    prediction: Prediction = "histogram"


SloOption: TypeAlias = Annotated[
    str,
    typer.Option(metavar="BOUNDS", help="A request counts in goodput if it meets these: ttft, tpot, e2e, in s or ms."),
]

# ── which outputs ──

JsonFile: TypeAlias = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for stdout, without the table."),
]
Jobs: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes to use; all cores by default.", show_default=False)
]
