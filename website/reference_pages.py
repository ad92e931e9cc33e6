"""Reference pages made from the code: the command line and the Python API."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import headway
from headway.cli.app import app

_COMMAND_LINE = """# Command line

Made from the code: what `headway VERB --help` prints. Exit status: 0 done, 1 a fault of Headway, 2 a mistake in the
input, 130 interrupted, 141 the reader of the output left.
"""
_PYTHON_API = """# Python API: every name

Made from the signatures and docstrings of `import headway as hw`. How they go together, with examples, is on
[Python API](../api.md). Only these names are stable.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^([\w, ]+): (.*(?:\n {4}.*)*)", re.MULTILINE)
_HEADS = {"Args": "argument", "Attributes": "field", "Raises": "error"}


def command_line_page() -> str:
    """Markdown of all verbs, in the order of `headway --help`."""
    root = get_command(app)
    return "\n".join([_COMMAND_LINE, *_verbs(root, "headway")]) + "\n"


def python_api_page() -> str:
    """Markdown of every public name, functions first."""
    names = [name for name in headway.__all__ if not name.startswith("_")]
    names.sort(key=lambda name: (inspect.isclass(getattr(headway, name)), name))
    return "\n".join([_PYTHON_API, *(line for name in names for line in _name(name, getattr(headway, name)))]) + "\n"


def _verbs(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    if isinstance(command, TyperGroup):
        for below in command.list_commands(context):
            verb = command.get_command(context, below)
            if verb is not None and not verb.hidden:
                yield from _verbs(verb, f"{name} {below}")
        return
    yield f"## {name}\n"
    yield f"{(command.help or '').strip()}\n"
    usage = " ".join(context.command.collect_usage_pieces(context))
    yield f"```\n{name} {usage}\n```\n"
    rows = [row for one in command.params if (row := _option_row(one, context)) is not None]
    if rows:
        yield "| option | what it does |\n|---|---|"
        yield from rows
        yield ""


def _option_row(parameter: Any, context: typer.Context) -> str | None:
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, help_text = map(_in_a_cell, record)
    return f"| `{names}` | {help_text} |"


def _name(name: str, value: Any) -> Iterator[str]:
    yield f"## {name}\n"
    is_class = inspect.isclass(value)
    if not is_class or (is_dataclass(value) and any(field.kw_only for field in fields(value))):
        yield _signature(f"hw.{name}", value)
    yield from _docstring(value)
    for below, method in vars(value).items() if is_class else ():
        if inspect.isfunction(method) and not below.startswith("_"):
            yield f"### {name}.{below}\n"
            yield _signature(f".{below}", method)
            yield from _docstring(method)


def _signature(name: str, value: Any) -> str:
    """A call with one argument a line where there are several."""
    found = inspect.signature(value)
    arguments = [one for one in found.parameters.values() if one.name != "self"]
    lines, is_by_name = list[str](), False
    for one in arguments:
        if one.kind is one.KEYWORD_ONLY and not is_by_name:
            is_by_name = True
            lines.append("*")
        lines.append(f"{one.name}: {one.annotation}" + ("" if one.default is one.empty else f" = {one.default!r}"))
    result = found.return_annotation
    end = "" if result in (inspect.Signature.empty, None, "None") else f" -> {result}"
    inner = "".join(f"\n    {line}," for line in lines) + "\n" if len(lines) > 2 else ", ".join(lines)
    return f"```python\n{name}({inner}){end}\n```\n"


def _docstring(value: Any) -> Iterator[str]:
    text = (inspect.getdoc(value) or "") + "\n"
    yield _SECTION.sub("", text).strip() + "\n"
    for title, body in _SECTION.findall(text):
        entries = textwrap.dedent(body).strip()
        if title == "Returns":
            yield f"Returns {_in_a_cell(entries)}\n"
            continue
        yield f"| {_HEADS[title]} | meaning |\n|---|---|"
        for names, meaning in _ENTRY.findall(entries):
            yield f"| `{names}` | {_in_a_cell(meaning)} |"
        yield ""


def _in_a_cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()
