"""`headway explain NAME`: all that is said of one policy."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from headway.bench.errors import UserMistake

if TYPE_CHECKING:
    from headway.policies.pages import PolicyPage


def explain(name: Annotated[str, typer.Argument(help="A policy, as `headway policies` lists it.")]) -> None:
    """Tell a policy's idea, source, what it reads, when it wins and when it loses, its options and its file."""
    for number, part in enumerate(name.split("/")):  # fair-share/smallest-volume-first is two
        if number:
            print()
        for line in _lines(_find(part)):
            print(line)


def _find(name: str) -> PolicyPage:
    from headway.policies.catalog import ALL_KINDS, names, nearest
    from headway.policies.pages import page

    for kind in ALL_KINDS:
        if name in names(kind):
            return page(kind, name)
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
