"""Coverage-guided fuzzing of one target, for some time; every kind of failure is kept once, with its input.

    python3 -m venv .venv-fuzz && .venv-fuzz/bin/pip install -e '.[dev]' atheris
    .venv-fuzz/bin/python -m tests.fuzz.run TARGET [--seconds 600] [--folder FOLDER]

Targets are in tests/fuzz/targets.py. Prints each failure as it is found. The corpus grows in FOLDER, so that the next
run goes on where this one ended.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import atheris  # not a dependency: see above

with atheris.instrument_imports(include=["headway"]):
    from tests.fuzz.seeds import SEEDS, WORDS
    from tests.fuzz.targets import TARGETS


class Collecting:
    """Calls a target; keeps the shortest input of each kind of failure, and goes on."""

    def __init__(self, name: str, folder: Path) -> None:
        self._target, self._folder = TARGETS[name], folder
        self._known: dict[tuple[str, ...], int] = {}

    def __call__(self, data: bytes) -> None:
        try:
            self._target(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            # Its type and its last two places in our code: a message may hold anything.
            places = [
                f"{Path(one.filename).name}:{one.name}:{one.lineno}"
                for one in frames
                if "site-packages" not in one.filename
            ]
            kind = (type(error).__name__, *places[-2:])
            if len(data) >= self._known.get(kind, sys.maxsize):
                return
            if kind not in self._known:
                print(f"== {' '.join(kind)}: {str(error)[:200]!r}\n   {data[:300]!r}", flush=True)
            self._known[kind] = len(data)
            name = "failure-" + "-".join(kind).replace("/", "_").replace(":", "-")
            (self._folder / name).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("fuzz"))
    typed = parser.parse_args()
    folder, corpus = typed.folder / typed.target, typed.folder / typed.target / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[typed.target]):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = folder / "words.dict"
    words.write_text("".join(f"{quoted(word)}\n" for word in WORDS[typed.target]))
    line = [
        sys.argv[0],
        f"-max_total_time={typed.seconds}",
        f"-dict={words}",
        "-max_len=6000",
        "-timeout=20",
        str(corpus),
    ]
    atheris.Setup(line, Collecting(typed.target, folder))
    atheris.Fuzz()


def quoted(word: bytes) -> str:
    """A word as libFuzzer's dictionaries have it."""
    return '"' + "".join(chr(b) if 32 < b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word) + '"'


if __name__ == "__main__":
    main()
