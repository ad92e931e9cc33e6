"""The options of `headway compare`: their names, their help, and how their texts are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from headway.bench.user_mistake import UserMistake

DEFAULT_SLO = "ttft=2s,tpot=100ms"
DEFAULT_HARDWARE, DEFAULT_MODEL = "h100", "llama-3.1-8b"


class OverContext(StrEnum):
    """What to do with requests longer than the replica can hold."""

    error = "error"
    refuse = "refuse"
    cut = "cut"


class Precision(StrEnum):
    """Of the weights."""

    bf16 = "bf16"
    fp8 = "fp8"


class PrefixCaching(StrEnum):
    """Whether the replica keeps finished prompts' KV blocks."""

    auto = "auto"
    on = "on"
    off = "off"


Traces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TRACE]...",
        help="Trace files, or names of built-in workloads (`headway workloads`); each is compared in turn.",
        show_default=False,
    ),
]
Load: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Scale arrivals to this share of the replica's saturation throughput, for example 0.9. Without it a "
        "trace keeps its own times, and a built-in workload runs at 0.9.",
    ),
]
Loads: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SHARE,…", help="Sweep over several loads, for example 0.5,0.7,0.9,1.1.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of everything random: workloads, policies, noise.")]
Requests: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first N requests of each trace.", show_default=False)
]
OpenLoop: TypeAlias = Annotated[
    bool,
    typer.Option("--open-loop", help="Replay sessions at their recorded times instead of turn after turn."),
]
SkipBadLines: TypeAlias = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Leave out lines that cannot be read, and say how many they were.")
]
Columns: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MAP", help="Which field is what in a file of no known format: arrival_ms=t,prompt=in,output=out."
    ),
]
OverContextOption: TypeAlias = Annotated[
    OverContext,
    typer.Option(
        help="Requests longer than the replica can hold: stop with an error, count them as refused, or cut them."
    ),
]
PolicyNames: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="NAME", help="An order to compare (`headway policies`); repeatable. `all` for every one."
    ),
]
Admission: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="Admission policy of all runs.")]
Prediction: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Output length predictor of all runs. `oracle` knows the true lengths: a bound, not something to deploy.",
    ),
]
Preemption: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="Who gives way when memory is short.")]
Bundles: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE.toml", help="Whole bundles of policies with their options, a table [bundle.NAME] each."),
]
SloOption: TypeAlias = Annotated[
    str, typer.Option(metavar="BOUNDS", help="What counts for goodput: ttft, tpot, e2e, each with s or ms.")
]
Hardware: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="GPU profile, or a TOML file of your own.")]
Model: TypeAlias = Annotated[str, typer.Option(metavar="NAME", help="Model profile, or a TOML file of your own.")]
TensorParallel: TypeAlias = Annotated[
    int | None, typer.Option("--tp", min=1, metavar="N", help="GPUs of one replica (tensor parallel).")
]
PrecisionOption: TypeAlias = Annotated[Precision, typer.Option(help="Precision of the weights.")]
KvTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="KV memory in tokens, instead of what the GPU would have left.")
]
CalibrationFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE.toml",
        help="Step times and limits as `headway calibrate` measured them, instead of --hardware and --model.",
        show_default=False,
    ),
]
PrefixCachingOption: TypeAlias = Annotated[
    PrefixCaching, typer.Option(help="Prefix cache; auto: on when the trace says which prompts share blocks.")
]
AsyncScheduling: TypeAlias = Annotated[
    bool | None,
    typer.Option("--async/--sync", help="Compose the next step before the outputs of this one are known (default)."),
]
MaxNumSeqs: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Most requests running at once (vLLM's option).")
]
MaxNumBatchedTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Token budget of a step (vLLM's option).")
]
JsonFile: TypeAlias = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for stdout, without the table."),
]
ReportFile: TypeAlias = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a self-contained HTML report with pictures.")
]
Jobs: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes to use; all cores by default.", show_default=False)
]


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """One command line of `headway compare`, as typed; fields are its options."""

    traces: list[str] | None
    policy: list[str] | None
    admission: str
    prediction: str
    preemption: str
    bundles: Path | None
    load: str | None
    loads: str | None
    seed: int
    requests: int | None
    slo: str
    hardware: str
    model: str
    tp: int | None
    precision: Precision
    kv_tokens: int | None
    over_context: OverContext
    prefix_caching: PrefixCaching
    async_scheduling: bool | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    open_loop: bool
    skip_bad_lines: bool
    columns: str | None
    json: str | None
    report: Path | None
    jobs: int | None
    calibration: Path | None = None


def whole_blocks(kv_tokens: int, block_tokens: int) -> int:
    """KV blocks in so many tokens. Raises UserMistake where that is not one."""
    if kv_tokens < block_tokens:
        raise UserMistake(f"--kv-tokens must be at least one block of {block_tokens}, got {kv_tokens}")
    return kv_tokens // block_tokens


def parse_loads(load: str | None, loads: str | None) -> tuple[float | None, ...]:
    """The loads asked for, in order; (None,) for the trace's own times.

    Raises:
        UserMistake: both are given, or one is not a list of different positive shares.
    """
    if load is not None and loads is not None:
        raise UserMistake("give --load or --loads, not both: --loads 0.9,1.1 runs several")
    if load is not None:
        return (_share(load, "--load"),)
    if loads is None:
        return (None,)
    shares = tuple(_share(part, "--loads") for part in loads.split(","))
    if len(set(shares)) < len(shares):
        raise UserMistake(f"--loads {loads}: a load is there twice; keep one of each")
    return shares


def _share(text: str, option: str) -> float:
    example = "write a share of saturation, for example 0.9"
    try:
        share = float(text)
    except ValueError:
        raise UserMistake(f"{option}: {text.strip()!r} is not a number; {example}") from None
    if not 0 < share < math.inf:
        raise UserMistake(f"{option}: {text.strip()} is not above 0; {example}")
    if share > 20:
        raise UserMistake(f"{option}: {text.strip()} is {share:g} times saturation; {example}, not a percentage")
    return share
