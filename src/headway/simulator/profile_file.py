"""Reading profiles: which TOML file a name means, and one clear sentence for each fault in it.

Packaged profiles lie in `profiles/hardware` and `profiles/models`; a user's own file has the same keys.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["hardware", "models"]

_WORD: Mapping[Kind, str] = {"hardware": "hardware", "models": "model"}


def profile_names(kind: Kind) -> tuple[str, ...]:
    """Names of the packaged profiles of this kind, sorted."""
    folder = resources.files("headway.simulator").joinpath("profiles", kind)
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read_profile(kind: Kind, name: str | Path) -> ProfileTable:
    """The profile called `name`, or the one in the file `name` (a `Path`, or a string that ends in `.toml`).

    Raises:
        ValueError: no such name (the sentence gives the nearest and the list), no such file, or not TOML.
    """
    word = _WORD[kind]
    if isinstance(name, Path) or name.endswith(".toml"):
        label = f"{word} file {name}"
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"{label} cannot be read: {reason}") from None
    else:
        known = profile_names(kind)
        if name not in known:
            raise ValueError(f"unknown {word} {name!r}: {nearest(name, known)}, or give a TOML file")
        label = f"{word} profile {name}"
        text = resources.files("headway.simulator").joinpath("profiles", kind, f"{name}.toml").read_text("utf-8")
    try:
        return ProfileTable(label, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{label} is not valid TOML: {error}") from None


def nearest(name: str, known: tuple[str, ...]) -> str:
    """'did you mean x? Known: …', or the list alone where nothing is near."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "Known: " + ", ".join(known)


class ProfileTable:
    """One TOML table whose keys are taken one by one; `close` refuses what nobody took.

    Every method raises ValueError with one sentence that names file, key and fix.
    """

    def __init__(self, label: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self._label = label
        self._values = values
        self._prefix = prefix
        self._taken: set[str] = set()

    def text(self, key: str) -> str:
        """A string, not empty."""
        value = self._take(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(key, f"must be a text that is not empty, got {value!r}")
        return value

    def whole(self, key: str, *, least: int = 1, default: int | None = None) -> int:
        """An integer of at least `least`."""
        if default is not None and key not in self._values:
            return default
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.fault(key, f"must be a whole number of at least {least}, got {value!r}")
        return value

    def positive(self, key: str, *, most: float = float("inf")) -> float:
        """A number greater than 0 and no greater than `most`."""
        value = self._take(key)
        if not _is_number(value) or not 0 < value <= most or value == float("inf"):
            bound = "" if most == float("inf") else f" and at most {most:g}"
            raise self.fault(key, f"must be a number above 0{bound}, got {value!r}")
        return float(value)

    def number(self, key: str, *, most: float = float("inf")) -> float:
        """A finite number of at least 0 and no greater than `most`."""
        value = self._take(key)
        if not _is_number(value) or not 0 <= value <= most or value == float("inf"):
            bound = "" if most == float("inf") else f" and at most {most:g}"
            raise self.fault(key, f"must be a number of at least 0{bound}, got {value!r}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        if key not in self._values:
            return default
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.fault(key, f"must be true or false, got {value!r}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers above 0 that is not empty and never falls."""
        value = self._take(key)
        if not isinstance(value, list) or not value or not all(_is_number(one) and one > 0 for one in value):
            raise self.fault(key, "must be a list of numbers above 0")
        if any(later < earlier for earlier, later in pairwise(value)):
            raise self.fault(key, "must not fall from one number to the next")
        return tuple(float(one) for one in value)

    def table(self, key: str) -> ProfileTable:
        """A table below this one."""
        found = self.optional_table(key)
        if found is None:
            raise self.fault(key, f"is missing: add a table [{self._prefix}{key}]")
        return found

    def optional_table(self, key: str) -> ProfileTable | None:
        """A table below this one, None where absent."""
        if key not in self._values:
            return None
        value = self._take(key)
        if not isinstance(value, dict):
            raise self.fault(key, f"must be a table, got {value!r}")
        return ProfileTable(self._label, value, f"{self._prefix}{key}.")

    def keys(self) -> tuple[str, ...]:
        """All keys of this table."""
        return tuple(self._values)

    def close(self) -> None:
        """Refuse keys that mean nothing."""
        for key in self._values:
            if key not in self._taken:
                raise self.fault(key, f"is not a key of this table: {nearest(key, tuple(sorted(self._taken)))}")

    def fault(self, key: str, sentence: str) -> ValueError:
        """The error for one key of this table."""
        return ValueError(f"{self._label}: {self._prefix}{key} {sentence}")

    def _take(self, key: str) -> Any:
        if key not in self._values:
            raise self.fault(key, "is missing")
        self._taken.add(key)
        return self._values[key]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
