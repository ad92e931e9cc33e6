"""`headway policies`: lists the catalogue."""

from __future__ import annotations

import textwrap


def policies() -> None:
    """List the policies, one line each, with their short names."""
    from headway.policies.catalog import ALL_KINDS, aliases, faults, names
    from headway.policies.pages import QUESTIONS, page

    for kind in ALL_KINDS:
        shown = {name: ", ".join([name, *aliases(kind, name)]) for name in names(kind)}
        rows = {text: page(kind, name).summary for name, text in shown.items()}
        rows |= {name: f"cannot be used: {fault}" for name, fault in faults(kind).items()}
        width = max(map(len, rows)) + 2
        print(f"{kind}: {QUESTIONS[kind]}")
        for name, text in rows.items():
            indent = " " * (width + 2)
            print(textwrap.fill(f"  {name.ljust(width)}{text}", 100, subsequent_indent=indent))
        print()
    print("`headway explain NAME` says more. `headway compare --ordering NAME` runs an ordering on your traffic.")
