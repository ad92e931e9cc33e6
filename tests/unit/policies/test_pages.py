"""Pages: complete, fresh, and true to the files they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.policies import catalog, pages
from headway.policies.catalog import ROOMS
from headway.policies.pages import PolicyPage

ROOT = Path(__file__).parents[3]


def test_the_pages_in_the_docs_are_fresh() -> None:
    """If this fails: python -m headway.policies.pages docs/policies (and remove pages of policies that are gone)."""
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "policies").iterdir()}
    assert written == pages.files()


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_a_page_says_everything_and_names_its_file(page: PolicyPage) -> None:
    assert (ROOT / page.file).is_file()
    assert f"class {page.class_name}" in (ROOT / page.file).read_text(encoding="utf-8")
    for text in (page.summary, page.idea, page.source, page.reads, page.wins_when, page.loses_when):
        assert text.endswith(".")
        assert "\n" not in text


def test_every_policy_has_one_page() -> None:
    assert [(p.kind, p.name) for p in pages.pages()] == [(k, n) for k, room in ROOMS.items() for n in room]


def test_options_are_read_from_the_constructor() -> None:
    options = {o.name: (o.type, o.default) for o in pages.page("ordering", "fair-share").options}
    assert options == {
        "prompt_weight": ("a number", "1.0"),
        "output_weight": ("a number", "2.0"),
        "tenant_weights": ("a table of names, each with a number", "none"),
    }
    assert pages.page("ordering", "fcfs").options == ()


def test_a_docstring_without_its_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        """Says little.

        Idea: none.
        """

        def rank(self, request: object) -> float:
            return 0.0

    monkeypatch.setitem(catalog.ORDERING, "mute", Mute)
    with pytest.raises(ValueError, match=r"ordering policy mute must be .* Idea, Source, .* it has Idea"):
        pages.page("ordering", "mute")


def test_the_command_writes_all_files_or_says_how_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pages.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(pages.files())
    assert pages.main([str(tmp_path / "missing")]) == 2
    assert pages.main([]) == 2
    assert "usage:" in capsys.readouterr().err
