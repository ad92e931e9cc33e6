"""Puts what a benchmark measured into a page, between `<!-- table NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def show(texts: Mapping[str, str], page: Path | None) -> None:
    """Replace each named place of the page, or print all when there is none.

    Raises:
        ValueError: the page has no place of that name, or several.
    """
    if page is None:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in texts.items()))
        return
    content = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        places = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        parts = places.split(content)
        if len(parts) != 4:
            raise ValueError(f"{page} has {(len(parts) - 1) // 3} places for the table {name}, not one")
        content = parts[0] + parts[1] + text + "\n" + parts[2] + parts[3]
    page.write_text(content, encoding="utf-8")
