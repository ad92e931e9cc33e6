"""The version: one file has it, and refuses a Python that is too old in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

from headway import __version__

ROOT = Path(__file__).parents[2]
FILE = ROOT / "src" / "headway" / "version.py"


def test_a_build_on_an_old_python_ends_with_one_sentence() -> None:
    """As hatchling runs the file, which pip does before it looks for anything that we need."""
    code = f"import runpy, sys; sys.version_info = (3, 10, 13); runpy.run_path({str(FILE)!r})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "Headway needs Python 3.11 or newer, and this is Python 3.10\n"


def test_the_changelog_begins_with_this_version_or_what_comes_after_it() -> None:
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [head.split(" – ") for head in heads if head != "Unreleased"]
    assert versions[0][0] == __version__
    days = [date.fromisoformat(day) for _, day in versions]
    assert days == sorted(days, reverse=True)
    assert "Unreleased" not in heads[1:]
