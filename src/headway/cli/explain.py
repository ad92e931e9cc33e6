"""`headway explain NAME`: all that is said of one policy; or, of a server that runs, why a request waited."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.bench.user_mistake import UserMistake

if TYPE_CHECKING:
    from headway.policies.pages import PolicyPage


def explain(
    name: Annotated[
        str, typer.Argument(help="A policy, as `headway policies` lists it; with --live the id of a request.")
    ],
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FILE", help="Draw what it has learned, from a file `headway tune` wrote."),
    ] = None,
    live: Annotated[
        str | None,
        typer.Option("--live", metavar="URL", help="Ask the server there why the request of that id waited."),
    ] = None,
) -> None:
    """Tell a policy's idea, source, what it reads, when it wins and when it loses, its options and its file.

    With --state, draw the lanes it has learned over the histogram of sizes instead. With --live, ask a gateway of
    `headway serve`, or a vLLM with the plug-in (`why_listen`), why a request waited.
    """
    if live is not None:
        if state is not None:
            raise UserMistake(
                "--live asks a server of a request, --state reads what a policy learned: give one of them"
            )
        from headway.cli.explain_live import live_lines

        for line in live_lines(live, name):
            print(line)
        return
    if state is not None:
        _find(name)  # a name that nothing has is told before the file is looked for
        for line in _learned(name, state):
            print(line)
        return
    pages = [found for part in name.split("/") for found in _find(part)]  # fair-share/smallest-volume-first is two
    for number, found in enumerate(pages):
        if number:
            print()
        for line in _lines(found):
            print(line)


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


def _find(name: str) -> list[PolicyPage]:
    """The pages of a name: two where policies of two kinds share it, as past-future's do.

    Raises:
        UserMistake: no policy is called so.
    """
    from headway.config.nearest_name import nearest
    from headway.policies.catalog import ALL_KINDS, names
    from headway.policies.pages import page

    found = [page(kind, name) for kind in ALL_KINDS if name in names(kind)]
    if found:
        return found
    everyone = [one for kind in ALL_KINDS for one in names(kind)]
    raise UserMistake(f"unknown policy {name!r}{nearest(name, everyone)}")


def _lines(page: PolicyPage) -> list[str]:
    parts = (
        ("idea", page.idea),
        ("source", page.source),
        ("reads", page.reads),
        ("wins when", page.wins_when),
        ("loses when", page.loses_when),
        ("options", "; ".join(f"{o.name}: {o.type}, default {o.default}" for o in page.options) or "none"),
        ("class", page.class_name),
        ("file", page.file),
    )
    lines = [f"{page.name} ({page.kind})", "", *textwrap.wrap(page.summary, 100), ""]
    for label, text in parts:
        lines += textwrap.wrap(text, 100, initial_indent=label.ljust(12), subsequent_indent=" " * 12)
    return lines
