"""`headway policies`: lists the catalogue."""

from __future__ import annotations

import textwrap


def policies() -> None:
    """List the policies, one line each."""
    from headway.policies.catalog import ALL_KINDS, names
    from headway.policies.pages import QUESTIONS, page

    for kind in ALL_KINDS:
        known = names(kind)
        width = max(map(len, known)) + 2
        print(f"{kind}: {QUESTIONS[kind]}")
        for name in known:
            indent = " " * (width + 2)
            print(textwrap.fill(f"  {name.ljust(width)}{page(kind, name).summary}", 100, subsequent_indent=indent))
        print()
    print("`headway explain NAME` says more. `headway compare --ordering NAME` runs an ordering on your traffic.")
