"""Page of the gateway's configuration, generated from the docstrings of its settings.

`python -m headway.gateway.settings_page docs/gateway-config.md` writes it.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from headway.gateway.settings import Settings

_HEAD = """# The gateway's configuration, every key

For `headway serve --config FILE.toml`. `headway check-config FILE.toml` reports the first mistake in a file. A key left
out has its default. SIGHUP reads the file again: all keys change at once and no request is lost. Keys and tables that
say "Needs a restart" keep their values until then.

Generated from the docstrings: `python -m headway.gateway.settings_page docs/gateway-config.md`.
"""
_NEEDS_RESTART = "Needs a restart."
_ATTRIBUTE = re.compile(r"^    (\w+): ", re.MULTILINE)


def render() -> str:
    """The whole page as Markdown."""
    kinds = get_type_hints(Settings)
    sections = [_section("Top level", Settings)]
    for key in fields(Settings):
        inner = _table_class(kinds[key.name])
        if inner is not None:
            sections.append(_section(_title(key.name, kinds[key.name]), inner))
            kinds_inside = get_type_hints(inner)
            sections += [
                _section(f"`[{key.name}.{one.name}]`", kinds_inside[one.name])
                for one in fields(inner)
                if is_dataclass(kinds_inside[one.name])
            ]
    return "\n".join([_HEAD, *sections])


def changed_keys(before: Settings, now: Settings) -> list[str]:
    """Keys whose values differ, `table.key` inside a table; of lists such as [[replica]] only their name."""
    changed: list[str] = []
    for key in fields(Settings):
        old, new = getattr(before, key.name), getattr(now, key.name)
        if old != new and is_dataclass(old) and is_dataclass(new):
            inner = [one.name for one in fields(new) if getattr(old, one.name) != getattr(new, one.name)]
            changed += [f"{key.name}.{name}" for name in inner]
        elif old != new:
            changed.append(key.name)
    return changed


def restart_keys(before: Settings, now: Settings) -> list[str]:
    """Keys and tables whose values differ although they need a restart, by their docstrings: what the page says."""
    _, meanings = _docstring(Settings)
    changed = [key.name for key in fields(Settings) if getattr(before, key.name) != getattr(now, key.name)]
    waiting: list[str] = []
    for name in changed:
        table = getattr(now, name)
        if name in meanings:
            waiting += [name] if _NEEDS_RESTART in meanings[name] else []
        elif is_dataclass(table):
            summary, inner = _docstring(type(table))
            whole = _NEEDS_RESTART in summary
            for key in fields(table):
                differs = getattr(getattr(before, name), key.name) != getattr(table, key.name)
                if differs and (whole or _NEEDS_RESTART in inner[key.name]):
                    waiting.append(f"{name}.{key.name}")
    return waiting


def _table_class(kind: Any) -> type | None:
    """The settings class of a table or of a list of tables; None for a plain key."""
    inner = (get_args(kind) or (kind,))[-1]
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def _title(name: str, kind: Any) -> str:
    if is_dataclass(kind):
        return f"`[{name}]`"
    return f'`[{name}."NAME"]`' if get_origin(kind) is Mapping else f"`[[{name}]]`"


def _section(title: str, settings: type) -> str:
    summary, meanings = _docstring(settings)
    lines = [f"## {title}", "", summary, "", "| key | default | meaning |", "|---|---|---|"]
    keys = list(_plain_keys(settings))
    if [key.name for key in keys] != list(meanings):
        raise ValueError(f"the docstring of {settings.__name__} must explain its keys in their order")
    lines += [f"| `{key.name}` | {_default(key)} | {meanings[key.name]} |" for key in keys]
    return "\n".join(lines) + "\n"


def _plain_keys(settings: type) -> Iterator[Field[Any]]:
    kinds = get_type_hints(settings)
    return (key for key in fields(settings) if _table_class(kinds[key.name]) is None)


def _docstring(settings: type) -> tuple[str, dict[str, str]]:
    """What a settings class is, and the meaning of each of its keys."""
    summary, _, attributes = (inspect.getdoc(settings) or "").partition("Attributes:\n")
    _, *parts = _ATTRIBUTE.split(attributes)
    meanings = {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return " ".join(summary.split()), meanings


def _default(key: Field[Any]) -> str:
    """As it is written in TOML."""
    default = key.default_factory() if key.default_factory is not MISSING else key.default
    if default is MISSING:
        return "**needed**"
    return "none" if default is None else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
