"""The options of `headway tune` alone: which policy, how it is searched, what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.cli.command_options import ORDERING
from headway.cli.name_completion import policies_of


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """One search over the options of one ordering."""

    ordering: Annotated[
        str,
        typer.Option(
            *ORDERING,
            metavar="NAME",
            help="The ordering to tune; it must declare tunable options.",
            autocompletion=policies_of("ordering"),
        ),
    ] = "ewsjf"
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trials; each replays the first 70 % of the trace.")
    ] = 20
    reward: Annotated[
        str,
        typer.Option(metavar="NAME", help="plain: SLO goodput minus starvation; published: EWSJF's own, about lanes."),
    ] = "plain"
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="OPTION=LOW:HIGH", help="Search an option in this range, not in its own; repeatable."
        ),
    ] = None
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Keep an option at a value; repeatable.")
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.toml", help="Write the best as a bundle for `headway compare --bundles`."),
    ] = None
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", help="Continue from this state file if it exists, and write what was learned."
        ),
    ] = None
