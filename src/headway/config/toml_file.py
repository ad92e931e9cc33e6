"""Reading a TOML file, each fault in one sentence."""

from __future__ import annotations

import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any


def read_toml(file: Path | Traversable, label: str) -> dict[str, Any]:
    """The tables of a file. `label` is what sentences call it, such as its path or the option that named it.

    Raises:
        ValueError: it cannot be read, is not UTF-8 or not TOML; one sentence that begins with `label`.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{label}: it cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise ValueError(f"{label}: it is not UTF-8 text; name a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{label}: it is not valid TOML: {error}") from None
