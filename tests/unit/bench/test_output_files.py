"""Output files are replaced whole, or the old one stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.bench.output_files import check_files, check_writable, replacing
from headway.bench.user_mistake import UserMistake


def test_the_whole_text_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with replacing(path, "--json") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path, "--json") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_pipe_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    """So is a device: whoever may write to /dev must not lose /dev/null by naming it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with replacing(pipe, "--json") as to:
            to.write_text("new")
        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "folder" / "real.json")
    with replacing(link, "--json") as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "folder" / "real.json").read_text() == "new"


def test_a_folder_that_takes_no_files_is_the_users_to_put_right() -> None:
    """Where even root may not: the sentence, not a failure of ours."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    with (
        pytest.raises(UserMistake, match=r"--json /proc/numbers.json: it cannot be written"),
        replacing(Path("/proc/numbers.json"), "--json"),
    ):
        pass


def test_colleagues_may_read_what_was_written(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with replacing(tmp_path / "out.json", "--json") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(old)
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o644


def test_a_missing_folder_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"--report .*none/r\.html: the folder .*none does not exist"):
        check_writable(tmp_path / "none" / "r.html", "--report")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="that is a folder"):
        check_writable(tmp_path, "--json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserMistake, match="may not be written to"):
        check_writable(tmp_path / "out.json", "--json")
    tmp_path.chmod(0o700)


def test_what_is_read_is_not_written_over_and_nothing_is_written_twice(tmp_path: Path) -> None:
    day, other = tmp_path / "day.jsonl", tmp_path / "other"
    check_files({"--json": other, "--report": None}, [str(day), "chat"])
    with pytest.raises(UserMistake, match=r"--json .*/day.jsonl: this file is read, and would be lost; name"):
        check_files({"--json": tmp_path / "." / "day.jsonl"}, [str(day)])
    with pytest.raises(UserMistake, match=r"--report .*/other: this file is written by --json"):
        check_files({"--json": other, "--report": other}, [str(day)])
