"""TOML files that cannot be read are one sentence that begins with the file's label."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config.toml_file import read_toml


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[queue]\nname = 'ü'\n", encoding="utf-8")
    assert read_toml(file, "x") == {"queue": {"name": "ü"}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "--bundles a: it cannot be read: No such file or directory; check the path"),
        (b"\xff", "--bundles a: it is not UTF-8 text; name a TOML file"),
        (b"x = ", "--bundles a: it is not valid TOML: "),
    ],
)
def test_a_fault_is_one_sentence(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        read_toml(file, "--bundles a")
