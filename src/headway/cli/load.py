"""`headway load URL`: send a trace or a workload to a live endpoint and print the table that `compare` prints."""

from __future__ import annotations

from typing import Annotated

import typer


def load(
    url: Annotated[str, typer.Argument(help="An OpenAI endpoint, without /v1, for example http://127.0.0.1:8000.")],
) -> None:
    """Placeholder while the load generator is written."""
