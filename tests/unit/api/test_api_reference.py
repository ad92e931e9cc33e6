"""The reference of the Python API on the site has every name and argument."""

from __future__ import annotations

import inspect
import re

import headway
from website.reference_pages import python_api_page


def test_every_name_and_argument_is_on_the_page() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", python_api_page(), re.MULTILINE | re.DOTALL))
    assert sections.keys() == {name for name in headway.__all__ if not name.startswith("_")}
    for name, section in sections.items():
        rows = set(re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE))
        if name in ("compare", "load_trace", "Replica"):
            assert set(inspect.signature(getattr(headway, name)).parameters) <= rows, name
        if inspect.isclass(getattr(headway, name)):
            methods = {one for one in vars(getattr(headway, name)) if not one.startswith("_")}
            assert {one for one in methods if inspect.isfunction(getattr(getattr(headway, name), one))} == set(
                re.findall(rf"^### {name}\.(\w+)$", section, re.MULTILINE)
            )
    assert "admission: object = 'greedy'" in sections["compare"]
