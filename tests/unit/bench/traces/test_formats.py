"""A format of trace files is one row of the table, and no other file asks which formats there are."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from headway.bench.traces import formats
from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.formats import FORMATS, PACKINGS, TraceFormat
from headway.bench.traces.loading import load_trace
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows

MAGIC = b"TOY\x00"


def read_toy(file: TraceFile, rows: Rows) -> None:
    """A binary format: the magic bytes, then arrival in s, prompt and output of each request, as three doubles."""
    content = file.path.read_bytes()[len(MAGIC) :]
    for number, (arrival, prompt, output) in enumerate(struct.iter_unpack("<3d", content), 1):
        rows.add(number, {"at": arrival, "prompt": prompt, "output": output})


TOY = TraceFormat(
    suffixes=(".toy",),
    endings=(".toy",),
    recognises=lambda start: start.startswith(MAGIC),
    layout_of=lambda file, names_columns: ColumnMap({"arrival": "at", "prompt": "prompt", "output": "output"}),
    read=read_toy,
)


def test_one_row_adds_a_format_even_a_binary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "day.toy"
    path.write_bytes(MAGIC + struct.pack("<6d", 0.5, 10, 2, 1.5, 20, 3))
    monkeypatch.setattr(formats, "FORMATS", (TOY, *FORMATS))
    loaded = load_trace(str(path))
    assert loaded.trace.arrived_seconds.tolist() == [0.0, 1.0]
    assert loaded.trace.prompt_tokens.tolist() == [10, 20]
    assert loaded.trace.output_tokens.tolist() == [2, 3]


def test_every_suffix_that_is_tried_is_no_part_of_the_name() -> None:
    for known in FORMATS:
        for suffix in known.suffixes:
            assert suffix in {ending + packing for ending in known.endings for packing in ("", *PACKINGS)}


@pytest.mark.parametrize(
    ("start", "ending"),
    [
        (b"", ".jsonl"),
        (b'{"a": 1}', ".jsonl"),
        (b"\xef\xbb\xbf  {", ".jsonl"),
        (b"[1]", ".jsonl"),
        (b"TIMESTAMP,ContextTokens", ".csv"),
        (b"\x00\x01", ".csv"),
    ],
)
def test_the_first_bytes_say_which_format(start: bytes, ending: str) -> None:
    assert next(known for known in FORMATS if known.recognises(start)).endings[0] == ending
