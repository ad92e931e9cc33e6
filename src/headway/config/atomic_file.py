"""Atomic replacement of a file: after a crash it holds the old content or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(key: str, name: str | None) -> None:
    """Raise ValueError, one sentence, if no file of this name can be made; None names none. `key` is its option."""
    if name is None:
        return
    path = Path(name)
    if not path.parent.is_dir():
        raise ValueError(f"{key}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise ValueError(f"{key}: {str(path)!r} is a folder; name a file in it")
    if path.is_fifo() or path.is_socket():
        raise ValueError(f"{key}: {str(path)!r} is a pipe or a socket, which keeps nothing; name a file")


def is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, such as /dev/null, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def target_of(path: Path) -> Path:
    """The file that is to be replaced: a link stays, and its target is replaced."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to. It takes the place of `path` if the block ends well, else vanishes.

    Only its owner may read it (mode 0600), unless the block changes that.

    Raises:
        OSError: the folder is missing, full, or may not be written to.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # on the disk before its name is, or a power cut leaves an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
