"""`headway explain NAME`: describes one policy; or asks a running server why a request waited."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.bench.user_mistake import UserMistake
from headway.cli.name_completion import complete_policy

if TYPE_CHECKING:
    from headway.policies.pages import PolicyPage


def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="A policy (`headway policies`). With --live, the id of a request.",
            autocompletion=complete_policy,
        ),
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", help="Draw what it has learned, from a file written by `headway tune`."
        ),
    ] = None,
    live: Annotated[
        str | None,
        typer.Option("--live", metavar="URL", help="Ask the server at this address why a request waited."),
    ] = None,
) -> None:
    """Describe a policy, or ask why a request waited.

    It shows the policy's idea and source, what it reads, when it wins and loses, its options and its file. With
    --state, it draws the learned lanes over the histogram of request sizes. With --live, it asks a server: a gateway
    of `headway serve`, or vLLM with the plug-in (`why_listen`).
    """
    if live is not None:
        if state is not None:
            raise UserMistake(
                "--live asks a server about a request, --state reads what a policy learned: give one of them"
            )
        from headway.cli.explain_live import live_lines

        for line in live_lines(live, name):
            print(line)
        return
    if state is not None:
        policy = _pages(name)[0].name  # an unknown name is reported before a missing file
        for line in _learned(policy, state):
            print(line)
        return
    pages = [page for part in name.split("/") for page in _pages(part)]  # fair-share/smallest-volume-first is two
    print("\n\n".join("\n".join(_lines(page)) for page in pages))


def _learned(name: str, path: Path) -> list[str]:
    from headway.bench.report.lanes_picture import cost_line, lanes_picture
    from headway.policies.lanes.cost_fit import PowerLaw
    from headway.policies.lanes.partition import Span
    from headway.tuning.state_file import Unreadable, read_state

    saved = read_state(path, name)
    if saved is None:
        raise UserMistake(f"--state {path}: there is no such file; `headway tune … --state {path}` writes one")
    if isinstance(saved, Unreadable):
        raise UserMistake(f"--state {saved.reason.removesuffix('; starting afresh')}")
    try:
        lanes = [Span(int(low), int(high), float(mean), int(n)) for low, high, mean, n in saved.learned["lanes"]]
        sizes = [int(size) for size in saved.learned["window"]]
        law = PowerLaw(*(float(number) for number in saved.learned["costs"]["law"]))
        lines = lanes_picture(sizes, lanes, str(saved.learned["feature"]).replace("-", " "))
    except (KeyError, TypeError, ValueError) as error:
        raise UserMistake(f"--state {path}: it holds no learned lanes ({error!r}); {name} may have none") from None
    best = max(saved.trials, key=lambda trial: trial.reward, default=None)
    tuned = [] if best is None else [f"tuning: {len(saved.trials)} trials, best reward {best.reward:.4f}"]
    return [*lines, cost_line(law), *tuned]


def _pages(name: str) -> list[PolicyPage]:
    """The pages of a name: two where policies of two kinds share it, as past-future's do.

    Raises:
        UserMistake: no policy has this name.
    """
    from headway.config.nearest_name import nearest
    from headway.policies.catalog import ALIASES, ALL_KINDS, canonical, faults, names
    from headway.policies.pages import page

    full = {kind: canonical(kind, name) for kind in ALL_KINDS}
    pages = [page(kind, full[kind]) for kind in ALL_KINDS if full[kind] in names(kind)]
    if not pages:
        for kind in ALL_KINDS:
            if name in faults(kind):
                raise UserMistake(faults(kind)[name])
        known = [policy for kind in ALL_KINDS for policy in names(kind)]
        short = [alias for kind in ALL_KINDS for alias in ALIASES.get(kind, ())]
        raise UserMistake(f"unknown policy {name!r}{nearest(name, known, short)}")
    return pages


def _lines(page: PolicyPage) -> list[str]:
    from headway.policies.catalog import aliases

    parts = (
        ("idea", page.idea),
        ("source", page.source),
        ("reads", page.reads),
        ("wins when", page.wins_when),
        ("loses when", page.loses_when),
        ("short name", ", ".join(aliases(page.kind, page.name)) or "none"),
        ("options", "; ".join(f"{o.name}: {o.type}, default {o.default}" for o in page.options) or "none"),
        ("class", page.class_name),
        ("file", page.file),
    )
    lines = [f"{page.name} ({page.kind})", "", *textwrap.wrap(page.summary, 100), ""]
    for label, text in parts:
        lines += textwrap.wrap(text, 100, initial_indent=label.ljust(12), subsequent_indent=" " * 12)
    return lines
