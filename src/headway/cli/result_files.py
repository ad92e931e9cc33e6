"""What a verb leaves behind: its JSON on stdout or in a file, and the command line that repeats it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from headway.bench.output_files import replacing
from headway.bench.progress import say

STDOUT = "-"


def command_line() -> str:
    """What was typed, as one would type it again; bytes that are not UTF-8 are shown as `?`."""
    return shlex.join(["headway", *sys.argv[1:]]).encode("utf-8", "replace").decode()


def json_file(name: str | None) -> Path | None:
    """The file that `--json` names; None for stdout and where it is not given."""
    return None if name in (None, STDOUT) else Path(str(name))


def write_json(name: str, results: Sequence[dict[str, object]], *, schema: int, several: str) -> None:
    """Write the JSON of one result, or of several as a list under the key `several`, to a file or to stdout.

    Raises:
        UserMistake: the file cannot be written.
    """
    content = results[0] if len(results) == 1 else {"schema": schema, several: results}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = json_file(name)
    if path is None:
        sys.stdout.write(text)
        return
    with replacing(path, "--json") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"numbers: {path}")
