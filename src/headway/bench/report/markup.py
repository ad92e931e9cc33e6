"""HTML from text: everything that is not `Markup` already is escaped here."""

from __future__ import annotations

import html
import re

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VOID = frozenset({"meta", "input", "br", "hr"})


class Markup(str):
    """A piece of HTML that is safe to insert as it is."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Text as HTML, also inside attribute values; characters no document may hold become U+FFFD."""
    return Markup(html.escape(_NOT_IN_XML.sub("\ufffd", text), quote=True))


def tag(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """One element, well-formed as XML too.

    In attribute names an underscore stands for a hyphen and one at the end is dropped (`class_`); a child that is not
    `Markup` is escaped.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    inside = join(*children)
    return Markup(f"<{name}{written}/>" if name in _VOID else f"<{name}{written}>{inside}</{name}>")


def join(*pieces: str) -> Markup:
    """Pieces one after the other, escaped where they are not `Markup`."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(piece) for piece in pieces))
