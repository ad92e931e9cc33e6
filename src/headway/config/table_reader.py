"""One TOML table whose keys are taken one by one, for files whose shape no dataclass has."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from headway.config.nearest_name import nearest
from headway.config.typed_values import Bounds, checked


class TableReader:
    """Hands out checked values key by key; `close` refuses the keys that nothing has taken.

    Every method raises ValueError with one sentence that names file, key and fix.
    """

    def __init__(self, label: str, values: Mapping[str, Any], prefix: str = "") -> None:
        """`label` is what sentences call the file or table; `prefix` stands before a key's name, such as "queue."."""
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

    def whole(self, key: str, *, least: int = 1) -> int:
        """An integer of at least `least`."""
        return int(self._checked(key, Annotated[int, Bounds(least=least)]))

    def positive(self, key: str, *, most: float | None = None) -> float:
        """A finite number greater than 0 and no greater than `most`."""
        return float(self._checked(key, Annotated[float, Bounds(above=0, most=most)]))

    def number(self, key: str, *, most: float | None = None) -> float:
        """A finite number of at least 0 and no greater than `most`."""
        return float(self._checked(key, Annotated[float, Bounds(least=0, most=most)]))

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false; `default` where the key is absent."""
        return bool(self._checked(key, bool)) if key in self._values else default

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers above 0 that is not empty and never falls."""
        numbers: tuple[float, ...] = self._checked(key, tuple[Annotated[float, Bounds(above=0)], ...])
        if not numbers:
            raise self.fault(key, "must be a list of numbers above 0, got []")
        if any(later < earlier for earlier, later in pairwise(numbers)):
            raise self.fault(key, "must not fall from one number to the next")
        return numbers

    def table(self, key: str) -> TableReader:
        """A table below this one."""
        table = self.optional_table(key)
        if table is None:
            raise self.fault(key, f"is missing: add a table [{self._prefix}{key}]")
        return table

    def optional_table(self, key: str) -> TableReader | None:
        """A table below this one, None where absent."""
        if key not in self._values:
            return None
        value = self._take(key)
        if not isinstance(value, dict):
            raise self.fault(key, f"must be a table, got {value!r}")
        return TableReader(self._label, value, f"{self._prefix}{key}.")

    def keys(self) -> tuple[str, ...]:
        """All keys of this table."""
        return tuple(self._values)

    def values(self) -> Mapping[str, Any]:
        """The table as the file has it, for a reader of whole tables."""
        return self._values

    def close(self) -> None:
        """Refuse keys that mean nothing."""
        for key in self._values:
            if key not in self._taken:
                raise ValueError(f"{self._label}: unknown key {self._prefix}{key}{nearest(key, sorted(self._taken))}")

    def fault(self, key: str, sentence: str) -> ValueError:
        """The error for one key of this table."""
        return ValueError(f"{self._label}: {self._prefix}{key} {sentence}")

    def _checked(self, key: str, declared: Any) -> Any:
        return checked(self._take(key), declared, f"{self._label}: {self._prefix}{key}")

    def _take(self, key: str) -> Any:
        if key not in self._values:
            raise self.fault(key, "is missing")
        self._taken.add(key)
        return self._values[key]
