"""The page of the laws says what the laws say."""

from __future__ import annotations

from pathlib import Path

from headway.testing import laws
from headway.testing.law_pages import page

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"


def test_the_page_is_as_generated() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m headway.testing.law_pages docs/testing.md"


def test_every_law_is_on_the_page() -> None:
    text = page()
    for name in laws.__all__:
        assert f"`{name}`" in text, name
