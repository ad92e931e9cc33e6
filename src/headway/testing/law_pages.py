"""The page of the laws, read from their docstrings: `python -m headway.testing.law_pages docs/testing.md`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from headway.testing import laws

_TUPLES = {
    "RANKED": "an ordering with a fixed rank",
    "LANED": "an ordering with lanes",
    "ADMISSION": "an admission policy",
    "PREEMPTION": "a preemption policy",
    "PREDICTION": "a length predictor",
    "ROUTING": "a routing policy",
    "RESCHEDULING": "a rescheduling policy",
}
_HEAD = """# Test your own policy

Headway's policies are held to laws by property tests, and yours can be, with one import. A law draws hard cases with
[hypothesis](https://hypothesis.readthedocs.io) and raises `AssertionError` with the smallest case that breaks it.

```
pip install 'headway[testing]'
```

```python
import pytest
from headway.testing import laws


@pytest.mark.parametrize("law", laws.RANKED)  # laws.LANED for an ordering with lanes
def test_my_order_is_lawful(law):
    law(MyOrdering)  # a class, or any function that makes a fresh instance
```

`headway.testing.day_laws` has checks on whole simulated days (no request is lost, memory is never exceeded), and
`headway.testing.strategies` the cases themselves. `python -m headway.testing.law_pages docs/testing.md` writes it.
"""


def page() -> str:
    """Markdown of all laws, by kind of policy."""
    parts = [_HEAD]
    for name, what in _TUPLES.items():
        rows = [f"| `{law.__name__}` | {_first_sentence(inspect.getdoc(law) or '')} |" for law in getattr(laws, name)]
        parts.append("\n".join([f"## `{name}`: {what}\n", "| law | what it says |\n|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
