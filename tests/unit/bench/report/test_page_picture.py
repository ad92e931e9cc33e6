"""A picture for a page: its style is whole, so that its last rule holds, too."""

from __future__ import annotations

import re

from headway.bench.report.page_picture import page_picture


def test_the_style_has_whole_rules_only() -> None:
    found = re.search(r"<style>(.*?)</style>", page_picture([], ["a"], letter_width=6.0), re.DOTALL)
    assert found is not None
    style = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    assert re.sub(r"[^{}@]+\{[^{}@]*\}", "", style).strip() == ""
    assert re.search(r"\.title \{ font-weight: 600; \}", style)
