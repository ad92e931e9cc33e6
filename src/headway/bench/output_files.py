"""Files that Headway writes: whole or not at all, and refused before the work instead of after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from headway.bench.user_mistake import UserMistake
from headway.config.atomic_file import replaced


def check_writable(path: Path, option: str) -> None:
    """Say now what would fail after minutes of simulation.

    Raises:
        UserMistake: the folder is missing or may not be written to, or `path` is a folder.
    """
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise UserMistake(f"{option} {path}: it may not be written to; name another")
        return
    folder = _target(path).parent
    if not folder.is_dir():
        raise UserMistake(f"{option} {path}: the folder {folder} does not exist; create it or name another")
    if path.is_dir():
        raise UserMistake(f"{option} {path}: that is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise UserMistake(f"{option} {path}: the folder {folder} may not be written to; name another")


def check_files(outputs: Mapping[str, Path | None], inputs: Iterable[str] = ()) -> None:
    """`check_writable` for every option that names a file; and no file is written twice, or over one that is read.

    Raises:
        UserMistake: likewise.
    """
    taken = {Path(name).resolve(): "is read" for name in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path, option)
        if (use := taken.get(path.resolve())) is not None:
            raise UserMistake(f"{option} {path}: that very file {use}, and would be lost; name another")
        taken[path.resolve()] = f"is written by {option}"


@contextmanager
def replacing(path: Path, option: str) -> Iterator[Path]:
    """A temporary file beside `path` to write to; takes its place when the block ends well, else vanishes.

    A link stays, and what it names is replaced; a pipe or a device is itself what is written to.

    Raises:
        UserMistake: as `check_writable`, or the disk is full.
    """
    check_writable(path, option)
    try:
        if _is_special(path):
            yield path
        else:
            with replaced(_target(path)) as temporary:
                yield temporary
                temporary.chmod(0o666 & ~_umask())  # colleagues may read it, as any file that one writes
    except OSError as error:
        raise UserMistake(f"{option} {path}: it cannot be written: {error.strerror}") from error


def _is_special(path: Path) -> bool:
    """A pipe or a device, such as /dev/null: to be written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
