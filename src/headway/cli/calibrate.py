"""`headway calibrate`: fits step times to your own engine, from a recording or by sending load to it."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli.calibrate_options import CalibrationOutputs, EngineLimits, FitOptions, MeasuringOptions
from headway.cli.grouped_options import grouped


@grouped
def calibrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="LOG|URL",
            help="A recording: JSON Lines with ttft_ms and e2e_ms, the JSON of `vllm bench serve --save-detailed`, or "
            "a CSV log of the engine. Or the address of a live OpenAI-compatible server without other traffic.",
        ),
    ],
    outputs: CalibrationOutputs,
    fit: FitOptions,
    limits: EngineLimits,
    measuring: MeasuringOptions,
) -> None:
    """Fit step times to your own engine.

    It prints the error on requests that the fit did not see. Give the limits that the engine runs under. `headway
    compare --calibration FILE.toml` then simulates that engine.
    """
    from headway.cli.calibrate_run import run_calibration

    run_calibration(source, outputs, fit, limits, measuring)
