"""Reading profiles: which TOML file a name means, and one clear sentence for each fault in it.

Packaged profiles lie in `profiles/hardware` and `profiles/models`; a user's own file has the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, TypeAlias

from headway.config.nearest_name import nearest
from headway.config.table_reader import TableReader
from headway.config.toml_file import read_toml

Kind: TypeAlias = Literal["hardware", "models"]

_WORD: Mapping[Kind, str] = {"hardware": "hardware", "models": "model"}


def profile_names(kind: Kind) -> tuple[str, ...]:
    """Names of the packaged profiles of this kind, sorted."""
    files = [entry.name for entry in _folder(kind).iterdir() if entry.name.endswith(".toml")]
    return tuple(sorted(name.removesuffix(".toml") for name in files))


def read_profile(kind: Kind, name: str | Path) -> TableReader:
    """The profile called `name`, or the one in the file `name` (a `Path`, or a string that ends in `.toml`).

    Raises:
        ValueError: no such name (the sentence gives the nearest and the list), no such file, or not TOML.
    """
    word = _WORD[kind]
    if isinstance(name, Path) or name.endswith(".toml"):
        label, file = f"{word} file {name}", Path(name)
        return TableReader(label, read_toml(file, label))
    known = profile_names(kind)
    if name not in known:
        raise ValueError(f"unknown {word} {name!r}{nearest(name, known)}, or give a TOML file")
    label, packaged = f"{word} profile {name}", _folder(kind).joinpath(f"{name}.toml")
    return TableReader(label, read_toml(packaged, label))


def _folder(kind: Kind) -> Traversable:
    return resources.files("headway.simulator").joinpath("profiles", kind)
