"""`headway serve`: one OpenAI endpoint with a real queue in front of any engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headway.gateway.settings import Settings


def serve(
    replica: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An engine, without /v1; repeatable. Without any a simulated one stands in."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="All settings; read again on SIGHUP. Options win over it.")
    ] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default 127.0.0.1:8000.")] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="The order (`headway policies`).")] = None,
    routing: Annotated[str | None, typer.Option(metavar="NAME", help="How a replica is chosen.")] = None,
    embedded_replicas: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many simulated engines stand in.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(metavar="NAME", help="Of the simulated engines.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Of the simulated engines.")] = None,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Record lengths and times, never text, as a trace; %Y, %m, %d … in the name are now.",
        ),
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log a line for every request.")] = False,
) -> None:
    """Take requests in OpenAI's wire, queue them by a policy, and send them to engines that have room.

    Runs until SIGTERM or Ctrl-C, then takes nothing more, finishes what is inside, and reports.
    """
    from headway.bench.user_mistake import UserMistake
    from headway.cli.gateway_extra import require_gateway

    require_gateway()
    from headway.gateway.process import serve as run

    given = {
        "replica": replica,
        "listen": listen,
        "ordering": policy,
        "routing": routing,
        "replicas": embedded_replicas,
        "hardware": hardware,
        "model": model,
        "record": record,
    }

    def read() -> Settings:
        return _settings(config, {key: value for key, value in given.items() if value not in (None, [])})

    try:
        whole = run(read(), read if config is not None else None, log_requests=log_requests)
    except ValueError as error:
        raise UserMistake(str(error)) from error
    except OSError as error:
        raise UserMistake(f"it cannot start: {error.strerror or error}; check the addresses and files") from error
    if not whole:
        raise typer.Exit(1)


def _settings(config: Path | None, given: dict[str, object]) -> Settings:
    """The file's settings, the command line's put over them. Raises ValueError."""
    from dataclasses import replace

    from headway.gateway import settings as gateway_settings

    found = gateway_settings.read_settings(config) if config is not None else gateway_settings.Settings()
    urls = given.pop("replica", None)
    if isinstance(urls, list):
        given["replica"] = tuple(gateway_settings.ReplicaSettings(url=url) for url in urls)
    policies = {key: given.pop(key) for key in ("ordering", "routing") if key in given}
    embedded = {key: given.pop(key) for key in ("replicas", "hardware", "model") if key in given}
    settings = replace(
        found,
        policies=replace(found.policies, **policies),  # type: ignore[arg-type]
        embedded=replace(found.embedded, **embedded),  # type: ignore[arg-type]
        **given,  # type: ignore[arg-type]
    )
    gateway_settings.check(settings)
    return settings
