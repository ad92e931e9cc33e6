"""The options of `headway calibrate` alone: how the engine is modelled, its limits, what is measured and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.cli.command_options import (
    AsyncScheduling,
    Columns,
    KvTokens,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    Precision,
    PrecisionOption,
    Seed,
    SkipBadLines,
    TensorParallel,
)
from headway.cli.name_completion import complete_hardware, complete_model

DEFAULT_FIT = "step_scale"


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Which model of step times is fitted: scalars over a GPU's profile, or a linear model."""

    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Fit scalars over this GPU's profile. Without it, a linear model is fitted.",
            autocompletion=complete_hardware,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model profile, with --hardware.", autocompletion=complete_model),
    ] = None
    tp: TensorParallel = None
    precision: PrecisionOption = Precision.bf16
    fit: Annotated[
        str,
        typer.Option(
            metavar="SCALAR,…",
            help="With --hardware: which of step_scale, kv_scale, prompt_step_scale, step_us to fit.",
        ),
    ] = DEFAULT_FIT


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The limits that the measured engine ran under."""

    kv_tokens: KvTokens = None
    block_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens in one KV block.")] = 16
    max_model_len: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest request of the engine.", show_default=False)
    ] = None
    max_num_seqs: MaxNumSeqs = None
    max_num_batched_tokens: MaxNumBatchedTokens = None
    prefix_caching: Annotated[
        bool,
        typer.Option(help="The engine has a prefix cache. Prompts share blocks if the recording says so."),
    ] = True
    async_scheduling: AsyncScheduling = None


@dataclass(frozen=True, slots=True)
class MeasuringOptions:
    """How a recording is read, or load is sent to a live server."""

    served_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Live server: its model. Default: the first one that it lists."),
    ] = None
    requests: Annotated[int, typer.Option(min=50, metavar="N", help="Live server: requests to send.")] = 300
    seed: Seed = 0
    columns: Columns = None
    skip_bad_lines: SkipBadLines = False


@dataclass(frozen=True, slots=True)
class CalibrationOutputs:
    """What is written, and under which name."""

    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="Where to write the calibration.")] = Path(
        "calibration.toml"
    )
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="The engine's name in tables.")] = None
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Also write the measured requests, as a trace for compare."),
    ] = None
