"""Finds the file that a user means: a path, or a name in the folder HEADWAY_TRACES."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from headway.bench.traces.formats import FORMATS, PACKINGS
from headway.bench.user_mistake import UserMistake

FOLDER_VARIABLE = "HEADWAY_TRACES"
_SUFFIXES = tuple(suffix for known in FORMATS for suffix in known.suffixes)


def trace_folder() -> Path | None:
    """The user's folder of traces, from the environment variable HEADWAY_TRACES; None where it is not set."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    return Path(named) if named else None


def trace_names() -> list[str]:
    """The names, without suffix, of the traces in the folder HEADWAY_TRACES."""
    folder = trace_folder()
    return [] if folder is None else sorted({bare_name(Path(name)) for name in _names_in(folder)})


def bare_name(path: Path) -> str:
    """What to call the trace of a file: its name without packing and format, `?` for bytes that are not UTF-8."""
    name = path.name.encode("utf-8", "replace").decode()
    for ending in (*PACKINGS, *(ending for known in FORMATS for ending in known.endings)):
        name = name.removesuffix(ending)
    return name or path.name


def find_file(text: str, other_names: tuple[str, ...] = ()) -> Path:
    """The file meant by `text`: a path, or a name (with or without its suffix) in the folder HEADWAY_TRACES.

    Args:
        text: what the user typed.
        other_names: names that would have been understood before files are looked for; only for the suggestion.

    Raises:
        UserMistake: there is no such file, with the nearest name there is; or it is a folder.
    """
    if not text.strip():
        raise UserMistake("the name of the trace is empty; give a file, a name in HEADWAY_TRACES or a workload's name")
    if "\x00" in text:
        raise UserMistake("the name of the trace holds a NUL character; give the path of a file")
    typed = Path(text).expanduser()
    folder = trace_folder()
    candidates = [typed]
    if folder is not None and typed.name == text:
        candidates += [folder / text, *(folder / f"{text}{suffix}" for suffix in _SUFFIXES)]
    for candidate in candidates:
        if _exists(candidate) and not candidate.is_dir():
            return candidate
    if _exists(typed):
        raise UserMistake(f"{text}: is a folder, not a trace; name one file in it{_nearest_in(typed)}")
    raise UserMistake(_missing(text, typed, folder, other_names))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _nearest_in(folder: Path) -> str:
    names = _names_in(folder)
    return f", such as {folder / names[0]}" if names else ""


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(_SUFFIXES) and entry.is_file())
    except OSError:
        return []


def _missing(text: str, typed: Path, folder: Path | None, other_names: tuple[str, ...]) -> str:
    nearby = {name: str(typed.parent / name) for name in _names_in(typed.parent)}
    if folder is not None:
        nearby |= {bare_name(Path(name)): bare_name(Path(name)) for name in _names_in(folder)}
    nearby |= {name: name for name in other_names}
    near = difflib.get_close_matches(typed.name, nearby, n=1, cutoff=0.5)
    hint = f"; did you mean {nearby[near[0]]}?" if near else ""
    where = "" if folder is not None else f" ({FOLDER_VARIABLE} is not set, so only paths and workloads are known)"
    return f"{text}: there is no such file, trace or workload{where}{hint or '; check the path'}"
