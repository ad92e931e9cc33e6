"""`headway calibrate`: step times of your own engine, from what it measured or from a load put on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.cli import compare_options as options
from headway.cli.compare_options import Precision


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """One command line of `headway calibrate`, as typed."""

    source: str
    out: Path
    hardware: str | None
    model: str | None
    tp: int | None
    precision: Precision
    fit: str
    name: str | None
    kv_tokens: int | None
    block_tokens: int
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    prefix_caching: bool
    async_scheduling: bool | None
    record: Path | None
    served_model: str | None
    requests: int
    seed: int
    columns: str | None
    skip_bad_lines: bool


def calibrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="LOG|URL",
            help="A recording (JSON Lines with ttft_ms and e2e_ms, the JSON of `vllm bench serve --save-detailed`, a "
            "CSV log of the engine), or the address of a live OpenAI-compatible server that nobody else uses.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.toml", help="Where to write the calibration.")] = Path(
        "calibration.toml"
    ),
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fit scalars over this GPU's profile; without it a linear model is fitted."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model profile, with --hardware.")] = None,
    tp: options.TensorParallel = None,
    precision: options.PrecisionOption = Precision.bf16,
    fit: Annotated[
        str,
        typer.Option(
            metavar="SCALAR,…",
            help="With --hardware: which of step_scale, kv_scale, prompt_step_scale, step_us to fit.",
        ),
    ] = "step_scale",
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="What tables call the engine.")] = None,
    kv_tokens: options.KvTokens = None,
    block_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens in a KV block.")] = 16,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest request of the engine.", show_default=False)
    ] = None,
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    prefix_caching: Annotated[
        bool, typer.Option(help="Whether the engine keeps prefixes and the recording says who shares them.")
    ] = False,
    async_scheduling: options.AsyncScheduling = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Also write what was measured, as a trace to compare on.")
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a live server: its model; else the first it lists."),
    ] = None,
    requests: Annotated[int, typer.Option(min=50, metavar="N", help="Of a live server: requests to send.")] = 300,
    seed: options.Seed = 0,
    columns: options.Columns = None,
    skip_bad_lines: options.SkipBadLines = False,
) -> None:
    """Fit step times to an engine, and print how far off they are on requests that the fit did not see.

    Name the limits that the engine runs under. `headway compare --calibration FILE.toml` then simulates that engine.
    """
    typed = CalibrateOptions(**locals())
    from headway.cli.calibrate_run import run_calibration

    run_calibration(typed)
