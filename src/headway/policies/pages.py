"""Pages of the policies' documentation, read from docstrings and constructors: nothing is written twice.

`python -m headway.policies.pages docs/policies` writes them all, and the index.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.config.typed_values import type_in_words
from headway.policies.catalog import ALL_KINDS, ROOMS, Kind, aliases, find, own_options
from headway.policies.options import declared_types
from headway.policies.places import DIFFERENCES, GIVEN, DecisionPlace, Grade, grade, needs_of

PARTS = ("Idea", "Source", "Reads", "Wins when", "Loses when")
"""The labelled parts of every policy's docstring, in their order, after a one-line summary."""

QUESTIONS: dict[Kind, str] = {
    "ordering": "Which request runs next?",
    "admission": "May a request join the batch now?",
    "preemption": "Which running request gives way when memory is short?",
    "prediction": "How many output tokens will a request produce?",
    "routing": "On which replica does a request run? (in the gateway, and in a simulated fleet)",
    "rescheduling": "Which requests go elsewhere after they were sent to a replica?",
}

_PLACES_FILE = "places.md"
_PLACES = """The same code decides in the simulator, in the gateway and in the vLLM plug-in. What it is given there
differs. Generated from what policies declare (`NEEDS`) and places give (`policies/places.py`); a
[test](../../tests/parity/test_three_places.py) plays one day in all three and compares each decision.

Every place gives a policy the requests that wait, their estimates, and the events of their lives. A policy may need
more. **yes**: all of it is given exactly. **estimated**: some of it is estimated, as told below, so its decisions may
differ from those in a simulation. **no**: something is missing, and the configuration is refused with one sentence."""
_MARKS = {Grade.EXACT: "yes", Grade.ESTIMATED: "estimated", Grade.MISSING: "no"}
_LABEL = re.compile(rf"^({'|'.join(PARTS)}):\s*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PolicyOption:
    """One option of a policy: its name, its type in words and its default."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True)
class PolicyPage:
    """The documentation of one policy; `file` is relative to the repository."""

    kind: Kind
    name: str
    class_name: str
    summary: str
    idea: str
    source: str
    reads: str
    wins_when: str
    loses_when: str
    options: tuple[PolicyOption, ...]
    file: str


def page(kind: Kind, name: str) -> PolicyPage:
    """The page of one policy, ours or another package's.

    Parts that another package's docstring lacks read "not stated".

    Raises:
        ValueError: no such policy, or the docstring of one of ours lacks a part or has them in another order.
    """
    policy = find(kind, name)
    root = "src/" if policy.__module__.startswith("headway.") else ""
    docstring = inspect.getdoc(policy) or ""
    summary, parts = (
        _parse(f"{kind} policy {name}", docstring) if root or name in ROOMS[kind] else _parse_leniently(docstring)
    )
    return PolicyPage(
        kind=kind,
        name=name,
        class_name=policy.__name__,
        summary=summary,
        idea=parts["Idea"],
        source=parts["Source"],
        reads=parts["Reads"],
        wins_when=parts["Wins when"],
        loses_when=parts["Loses when"],
        options=_options(policy),
        file=f"{root}{policy.__module__.replace('.', '/')}.py",
    )


def pages() -> list[PolicyPage]:
    """The pages of our own policies, in the catalogue's order."""
    return [page(kind, name) for kind in ALL_KINDS for name in ROOMS[kind]]


def render(page: PolicyPage) -> str:
    """One page as Markdown."""
    texts = (page.idea, page.source, page.reads, page.wins_when, page.loses_when)
    lines = [f"# {page.name}", "", f"{page.summary} ({page.kind.capitalize()}: {QUESTIONS[page.kind].lower()})", ""]
    for label, text in zip(PARTS, texts, strict=True):
        lines += [f"**{label}:** {text}", ""]
    if page.options:
        lines += ["| option | type | default |", "|---|---|---|"]
        lines += [f"| `{o.name}` | {o.type} | {o.default} |" for o in page.options]
    else:
        lines.append("It has no options.")
    if short := aliases(page.kind, page.name):
        lines += ["", f"Short name: {', '.join(f'`{alias}`' for alias in short)}."]
    lines += ["", f"Class `{page.class_name}` in [{page.file}](../../{page.file})."]
    return "\n".join(lines) + "\n"


def render_index(pages: list[PolicyPage]) -> str:
    """The list of all pages as Markdown."""
    lines = ["# Policies", "", "Generated from the docstrings: `python -m headway.policies.pages docs/policies`."]
    lines += ["", f"[Where each policy works]({_PLACES_FILE}): simulator, gateway, vLLM plug-in."]
    for kind in ALL_KINDS:
        lines += ["", f"## {kind.capitalize()}: {QUESTIONS[kind]}", "", "| policy | in one line |", "|---|---|"]
        lines += [f"| [{p.name}]({file_name(p)}) | {p.summary} |" for p in pages if p.kind == kind]
    return "\n".join(lines) + "\n"


def render_places(pages: list[PolicyPage]) -> str:
    """Where each policy works, as Markdown."""
    lines = [
        "# Where each policy works",
        "",
        _PLACES,
        "",
        f"| policy | needs | {' | '.join(DecisionPlace)} |",
        "|---|---|" + "---|" * 3,
    ]
    for policy in pages:
        needed = sorted(needs_of(policy.kind, policy.name))
        marks = [_MARKS[grade(policy.kind, policy.name, place)] for place in DecisionPlace]
        name = f"[{policy.name}]({file_name(policy)}) ({policy.kind})"
        lines.append(f"| {name} | {', '.join(needed) or '—'} | {' | '.join(marks)} |")
    for place in DecisionPlace:
        lines += ["", f"## What the {place} gives", "", "| need | given | how |", "|---|---|---|"]
        for need, given in GIVEN[place].items():
            fix = f": {given.fix}" if given.fix else ""
            lines.append(f"| {need} | {given.grade} | {given.how}{fix} |")
    lines += ["", "## Where the gateway decides otherwise all the same", ""]
    lines += [f"- **{name.capitalize()}:** {reason}." for name, reason in DIFFERENCES.items()]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """All generated files, file name → text."""
    all_pages = pages()
    named = {file_name(page): render(page) for page in all_pages}
    return {"README.md": render_index(all_pages), _PLACES_FILE: render_places(all_pages), **named}


def file_name(page: PolicyPage) -> str:
    """NAME.md; NAME-KIND.md where policies of two kinds have one name, being two halves of one idea."""
    shared = sum(page.name in room for room in ROOMS.values()) > 1
    return f"{page.name}-{page.kind}.md" if shared else f"{page.name}.md"


def _parse(what: str, docstring: str) -> tuple[str, dict[str, str]]:
    head, *rest = _LABEL.split(docstring)
    labels, texts = tuple(rest[::2]), rest[1::2]
    if labels != PARTS or not head.strip() or not all(text.strip() for text in texts):
        raise ValueError(
            f"the docstring of the {what} must be one line and the parts {', '.join(PARTS)}, in this order; "
            f"it has {', '.join(labels) or 'no parts'}"
        )
    return " ".join(head.split()), {label: " ".join(text.split()) for label, text in zip(labels, texts, strict=True)}


def _parse_leniently(docstring: str) -> tuple[str, dict[str, str]]:
    head, *rest = _LABEL.split(docstring)
    written = {label: " ".join(text.split()) for label, text in zip(rest[::2], rest[1::2], strict=True)}
    summary = " ".join(head.strip().split("\n\n")[0].split())
    return summary or "not described", {label: written.get(label) or "not stated" for label in PARTS}


def _options(policy: type[Any]) -> tuple[PolicyOption, ...]:
    own = own_options(policy)
    declared = declared_types(policy) if own else {}
    return tuple(
        PolicyOption(name, type_in_words(declared.get(name, object)), _default_in_words(parameter.default))
        for name, parameter in own.items()
    )


def _default_in_words(default: object) -> str:
    return "none" if default is None else repr(default)


def main(arguments: list[str]) -> int:
    """Write the files into the one folder named; 2 if it is not there."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m headway.policies.pages FOLDER (which must exist)", file=sys.stderr)
        return 2
    for name, text in files().items():
        Path(arguments[0], name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
