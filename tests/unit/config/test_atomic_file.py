"""A file is replaced whole or not at all, and nothing is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config.atomic_file import replaced


def test_the_new_content_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with replaced(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def write() -> None:
        with replaced(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "no" / "a.json"):
        pass
