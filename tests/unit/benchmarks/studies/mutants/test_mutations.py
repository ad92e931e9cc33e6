"""Mutations of a small module: what is found, what is left out, and that a loaded module takes them up."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.studies.mutants.__main__ import equivalents, main
from benchmarks.studies.mutants.mutations import mutants_of, mutated, noting_calls
from benchmarks.studies.mutants.transplant import transplant

SOURCE = '''"""A module."""
import logging
from typing import Protocol
log = logging.getLogger()
LIMIT = 3


class Shape(Protocol):
    def area(self) -> int: ...


class Box:
    wide = False

    def __init__(self, size: int = 4) -> None:
        self.size = size + 1

    @property
    def fits(self) -> bool:
        return self.size <= LIMIT and not self.wide

    def __repr__(self) -> str:
        return "Box" + str(self.size)

    def grow(self) -> None:
        log.info("grows by %d", 1)
        if self.size < 0:
            raise ValueError(f"size {self.size + 1}")
        self.size += 2
'''


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[tuple[str, ModuleType]]:
    path = tmp_path / "mutable_module.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("mutable_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutable_module"] = module
    spec.loader.exec_module(module)
    yield str(path), module
    del sys.modules["mutable_module"]


def test_the_faults_of_a_tired_colleague(loaded: tuple[str, ModuleType]) -> None:
    changes = {(mutant.scope, mutant.change) for mutant in mutants_of(loaded[0])}
    assert changes == {
        ("", "3 → 4"),
        ("Box", "False → True"),
        ("Box.__init__", "4 → 5"),
        ("Box.__init__", "size + 1 → size - 1"),
        ("Box.__init__", "1 → 2"),
        ("Box.fits", "self.size <= LIMIT and (not self.wide) → self.size <= LIMIT or not self.wide"),
        ("Box.fits", "self.size <= LIMIT and (not self.wide) → self.size <= LIMIT"),
        ("Box.fits", "self.size <= LIMIT → self.size < LIMIT"),
        ("Box.fits", "self.size <= LIMIT → self.size > LIMIT"),
        ("Box.fits", "not self.wide → self.wide"),
        ("Box.grow", "if self.size < 0: → if False:"),
        ("Box.grow", "if self.size < 0: → if True:"),
        ("Box.grow", "self.size < 0 → self.size <= 0"),
        ("Box.grow", "self.size < 0 → self.size >= 0"),
        ("Box.grow", "0 → 1"),
        ("Box.grow", "raise ValueError(f'size {self.size + 1}') → pass"),
        ("Box.grow", "self.size += 2 → self.size -= 2"),
        ("Box.grow", "self.size += 2 → pass"),
        ("Box.grow", "2 → 3"),
    }


def test_a_loaded_module_takes_each_of_them_up(loaded: tuple[str, ModuleType]) -> None:
    path, module = loaded

    def behaviour() -> tuple[object, ...]:
        box = module.Box()
        before = box.size, box.fits, module.Box(2).fits
        box.grow()
        edge = module.Box(-1)
        try:
            edge.grow()
            edges: object = edge.size
        except ValueError:
            edges = "refused"
        small = module.Box(-9)
        try:
            small.grow()
            smalls: object = small.size
        except ValueError:
            smalls = "refused"
        wide = module.Box(1)
        wide.wide = True
        return *before, box.size, edges, smalls, module.Box(3).fits, module.Box.wide, wide.fits

    as_it_is = behaviour()
    assert as_it_is == (5, False, True, 7, 2, "refused", False, False, False)
    for mutant in mutants_of(path):
        assert transplant(module, mutated(mutant)), mutant.name
        try:
            changed = behaviour() != as_it_is
        except (ValueError, TypeError):
            changed = True
        assert changed, mutant.name
        module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]


def test_names_stay_when_lines_move(loaded: tuple[str, ModuleType]) -> None:
    path, _ = loaded
    before = [mutant.name for mutant in mutants_of(path)]
    Path(path).write_text(SOURCE.replace('"""A module."""', '"""A module."""\n\n'))
    assert [mutant.name for mutant in mutants_of(path)] == before


def test_every_equivalent_that_is_listed_is_a_mutant_of_today() -> None:
    """A line that changed needs a new look."""
    listed = equivalents()
    assert all(listed.values()), "each has its reason"
    paths = {name.partition(" ")[0] for name in listed}
    names = {mutant.name for path in paths for mutant in mutants_of(path)}
    assert not listed.keys() - names


def test_every_function_notes_that_it_was_called(loaded: tuple[str, ModuleType]) -> None:
    path, module = loaded
    noted: list[str] = []
    vars(module)["note"] = noted.append
    assert transplant(module, noting_calls(path, "note"), {"note": noted.append})
    box = module.Box(1)
    assert box.fits
    box.grow()
    assert noted == ["Box.__init__", "Box.fits", "Box.grow"]


@pytest.mark.parametrize("option", ["--sample", "--jobs", "--seconds"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_nothing_runs_for_a_number_that_means_nothing(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mutants", "bounds", option, value])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"argument {option}: {value} is not above 0" in capsys.readouterr().err
