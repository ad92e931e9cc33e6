"""What the gateway says of a mistake in its TOML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.gateway.settings_file import read_settings


def sentence_about(tmp_path: Path, text: str) -> str:
    """The sentence about a file of this text; it names the file. Fails where the text is accepted."""
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"gateway\.toml") as told:
        read_settings(path)
    return str(told.value)
