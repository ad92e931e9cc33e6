"""Output files: written whole or not at all, and checked before the work instead of after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from headway.bench.user_mistake import UserMistake
from headway.config.atomic_file import is_special, replaced, target_of


def check_writable(path: Path, option: str) -> None:
    """Check now what would fail after minutes of simulation.

    Raises:
        UserMistake: the folder is missing or may not be written to, or `path` is a folder.
    """
    if is_special(path):
        if not os.access(path, os.W_OK):
            raise UserMistake(f"{option} {path}: it may not be written to; name another")
        return
    folder = target_of(path).parent
    if not folder.is_dir():
        raise UserMistake(f"{option} {path}: the folder {folder} does not exist; create it or name another")
    if path.is_dir():
        raise UserMistake(f"{option} {path}: that is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise UserMistake(f"{option} {path}: the folder {folder} may not be written to; name another")


def check_files(outputs: Mapping[str, Path | None], inputs: Iterable[str] = ()) -> None:
    """Check every option that names a file. No file may be written twice, or over a file that is read.

    Raises:
        UserMistake: a file cannot be written, or would be lost.
    """
    taken = {Path(name).resolve(): "is read" for name in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path, option)
        if (use := taken.get(path.resolve())) is not None:
            raise UserMistake(f"{option} {path}: this file {use}, and would be lost; name another")
        taken[path.resolve()] = f"is written by {option}"


@contextmanager
def replacing(path: Path, option: str) -> Iterator[Path]:
    """A temporary file beside `path` to write to. It replaces `path` when the block succeeds, and is removed otherwise.

    A link stays, and its target is replaced. A pipe or a device is written to directly.

    Raises:
        UserMistake: as `check_writable`, or the disk is full.
    """
    check_writable(path, option)
    try:
        if is_special(path):
            yield path
        else:
            with replaced(target_of(path)) as temporary:
                yield temporary
                temporary.chmod(0o666 & ~_umask())  # colleagues may read it, as any file that one writes
    except OSError as error:
        raise UserMistake(f"{option} {path}: it cannot be written: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
