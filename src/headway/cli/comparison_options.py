"""The options of the verbs that compare policies: the plug-in's part, the rows, and where the comparison is written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headway.cli.command_options import ORDERING, JsonFile
from headway.cli.name_completion import policies_of


class TableFormat(StrEnum):
    """How a comparison is printed."""

    text = "text"
    markdown = "markdown"
    csv = "csv"


class TuningOption(StrEnum):
    """What moves an engine's limits before each step."""

    off = "off"
    self_tuned = "self-tuned"
    prefill_budget = "prefill-budget"


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What the vLLM plug-in does beside its policies, the same in all runs."""

    tuning: Annotated[
        TuningOption,
        typer.Option(
            help="What moves before each step, as the plug-in does it: self-tuned the long-prefill threshold, "
            "prefill-budget the prompt tokens beside decodes, by --tpot-bound."
        ),
    ] = TuningOption.off
    tpot_bound: Annotated[
        float | None,
        typer.Option(help="Most seconds of a step with decodes and prompts in it; 0.05 under prefill-budget."),
    ] = None
    guard: Annotated[
        bool,
        typer.Option("--guard", help="The plug-in's do-no-harm guard: first come, first served while a policy harms."),
    ] = False
    displace: Annotated[
        bool,
        typer.Option("--displace", help="A waiting request takes the place of running ones of lower priority."),
    ] = False


@dataclass(frozen=True, slots=True)
class ComparedOrderings:
    """The rows of a comparison."""

    ordering: Annotated[
        list[str] | None,
        typer.Option(
            *ORDERING,
            metavar="NAME",
            help="An ordering to compare (`headway policies`); repeatable. `all` for every one.",
            autocompletion=policies_of("ordering", "all"),
        ),
    ] = None
    bundles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Bundles of policies with their options, one table [bundle.NAME] for each."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ComparisonOutputs:
    """Where a comparison is written."""

    json: JsonFile = None
    brief: Annotated[
        bool, typer.Option("--brief", help="Print only the headline and five columns, without definitions.")
    ] = False
    format: Annotated[
        TableFormat, typer.Option(help="How the table is printed: for people, or for a document or a script.")
    ] = TableFormat.text
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write one self-contained HTML report with charts."),
    ] = None
    requests_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|.parquet",
            help="Write a row for each request of each run: times, replica, preemptions, cached tokens, outcome.",
        ),
    ] = None
