"""`python -m headway`: the same as the console script `headway`."""

from __future__ import annotations

from headway.cli import main

main()
