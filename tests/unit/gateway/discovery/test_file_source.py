"""Files that name replicas: their forms, their changes, and each mistake in them."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.discovery.file_source import FileSource
from headway.gateway.discovery.replica_source import FoundReplica, SourceFault


def source_of(file: Path, refused: str = "") -> FileSource:
    def accept(found: FoundReplica) -> None:
        if refused and found.host == refused:
            raise ValueError(f"{refused} is refused")

    return FileSource(str(file), "http", accept)


def look(source: FileSource) -> list[str] | None:
    findings = asyncio.run(source.look())
    return None if findings is None else sorted(one.url for one in findings.replicas)


GROUPS = [
    {"targets": ["10.0.0.1:8000", "[2001:db8::1]:8000"], "labels": {"job": "vllm"}},
    {"targets": ["engine.test:443"], "labels": {"__scheme__": "https"}},
    {"targets": []},
]
URLS = ["http://10.0.0.1:8000", "http://[2001:db8::1]:8000", "https://engine.test:443"]


def test_targets_are_read_from_json_and_yaml(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    file.write_text(json.dumps(GROUPS), encoding="utf-8")
    assert look(source_of(file)) == URLS
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    file = tmp_path / "engines.yml"
    file.write_text(
        "- targets: ['10.0.0.1:8000', '[2001:db8::1]:8000']\n- targets: [engine.test:443]\n"
        "  labels: {__scheme__: https}\n",
        encoding="utf-8",
    )
    assert look(source_of(file)) == URLS


def test_a_file_is_read_again_when_it_changed_or_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    file.write_text('[{"targets": ["10.0.0.1:1"]}]', encoding="utf-8")
    source = source_of(file)
    assert look(source) == ["http://10.0.0.1:1"]
    assert look(source) is None
    before = file.stat()
    other = tmp_path / "other"
    other.write_text('[{"targets": ["10.0.0.1:2"]}]', encoding="utf-8")  # as long, and of the same time
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert look(source) == ["http://10.0.0.1:2"]
    file.write_text("[]", encoding="utf-8")
    assert look(source) == []


def test_a_mounted_folder_that_is_swapped_is_seen(tmp_path: Path) -> None:
    """A ConfigMap is a link to a folder, and another folder takes its place."""
    for name, port in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "engines.json").write_text(json.dumps([{"targets": [f"10.0.0.1:{port}"]}]), encoding="utf-8")
    (tmp_path / "data").symlink_to("one")
    source = source_of(tmp_path / "data" / "engines.json")
    assert look(source) == ["http://10.0.0.1:1"]
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    assert look(source) == ["http://10.0.0.1:2"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no JSON"),
        (b'[{"targets": ["10.0.0.1:8000"]', "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"{}", "it must hold groups like"),
        (b'[{"targets": "10.0.0.1:8000"}]', "it must hold groups like"),
        (b'[{"target": ["10.0.0.1:8000"]}]', "it must hold groups like"),
        (b'[{"targets": ["10.0.0.1"]}]', "a target must be HOST:PORT"),
        (b'[{"targets": [":80"]}]', "a target must be HOST:PORT"),
        (b'[{"targets": ["http://10.0.0.1:80/v1"]}]', "a target must be HOST:PORT"),
        (b'[{"targets": ["a:80"], "labels": {"__scheme__": "ftp"}}]', "must be http or https, got 'ftp'"),
        (b'[{"targets": ["good:80", "evil:80"]}]', "evil is refused"),
        (b'["' + b"x" * (5 << 20) + b'"]', "is longer than 4 MiB"),
        (b"[" * 100_000, "it must hold groups like"),
        (b'[{"targets": [], "labels": {}, "more": ' + b"[" * 100_000, "it is no JSON"),
    ],
)
def test_each_mistake_is_one_sentence_and_is_looked_at_again(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "engines.json"
    file.write_bytes(content)
    source = source_of(file, "evil")
    for _ in range(2):
        with pytest.raises(SourceFault, match=why) as raised:
            look(source)
        assert str(file) in str(raised.value)
        assert "\n" not in str(raised.value)
    file.write_text('[{"targets": ["good:80"]}]', encoding="utf-8")
    assert look(source) == ["http://good:80"]


def test_a_file_that_is_missing_comes_later(tmp_path: Path) -> None:
    source = source_of(tmp_path / "engines.json")
    with pytest.raises(SourceFault, match="No such file"):
        look(source)
    (tmp_path / "engines.json").write_text('[{"targets": ["good:80"]}]', encoding="utf-8")
    assert look(source) == ["http://good:80"]
    (tmp_path / "engines.json").unlink()
    with pytest.raises(SourceFault, match="No such file"):
        look(source)
    (tmp_path / "engines.json").write_text('[{"targets": ["good:80"]}]', encoding="utf-8")
    assert look(source) == ["http://good:80"]


@pytest.mark.parametrize("content", ["a: [", "targets: [x:1]", "!!python/object/apply:os.system [id]"])
def test_yaml_with_a_mistake_is_one_sentence(tmp_path: Path, content: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    file = tmp_path / "engines.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SourceFault) as raised:
        look(source_of(file))
    assert "\n" not in str(raised.value)


VALUES = st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)


@given(st.binary(max_size=200) | VALUES)
@settings(deadline=None)
def test_whatever_a_file_holds_it_is_targets_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("file") / "engines.json"
    file.write_bytes(content)
    with suppress(SourceFault):
        assert look(source_of(file)) is not None


@pytest.mark.parametrize("value", ['!!int ""', '!!float ""', "!!bool x", "!!timestamp x"])
def test_a_value_that_does_not_fit_its_tag_is_one_sentence(tmp_path: Path, value: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    file = tmp_path / "engines.yml"
    file.write_text(f"- targets: [{value}]", encoding="utf-8")
    with pytest.raises(SourceFault, match="it is no YAML: a value does not fit its tag"):
        look(source_of(file))


def test_a_short_file_of_aliases_takes_no_memory(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    file = tmp_path / "engines.yml"
    many = ", ".join(["'10.0.0.1:1'"] * 101)
    of_targets = f"- {{targets: &all [{many}]}}\n" + "- {targets: *all}\n" * 100
    of_labels = "- {targets: [], labels: &all {a: b, c: d}}\n" + "- {targets: [], labels: *all}\n" * 5_000
    for content in (of_targets, of_labels):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SourceFault, match="targets and labels, above 10000; name fewer"):
            look(source_of(file))


def test_very_many_targets_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    file.write_text(json.dumps([{"targets": ["10.0.0.1:1"] * 10_001}]), encoding="utf-8")
    with pytest.raises(SourceFault, match="10001 targets and labels, above 10000; name fewer"):
        look(source_of(file))


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    os.mkfifo(file)
    with pytest.raises(SourceFault, match="it is no JSON"):
        look(source_of(file))
