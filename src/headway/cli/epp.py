"""`headway epp`: the endpoint picker, which decides for Envoy when each request goes and to which engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.bench.user_mistake import UserMistake
from headway.cli.grouped_options import grouped
from headway.cli.serve import AddressOptions, GatewayOptions, LogOptions, settings_of

if TYPE_CHECKING:
    from headway.gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class PickerOptions:
    """How Envoy reaches the picker."""

    grpc_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address that Envoy's external processing connects to.")
    ] = "127.0.0.1:9002"
    grpc_tls: Annotated[
        bool, typer.Option("--grpc-tls", help="Speak TLS at that address too, by `tls_certificate` and `tls_key`.")
    ] = False
    envoy_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help="The shortest of Envoy's timeouts that a waiting request meets; the queue's own must be shorter.",
        ),
    ] = None
    fallbacks: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Further engines named to Envoy for each request, if its cluster can go on to them (override_host).",
        ),
    ] = 0


@grouped
def epp(
    address: AddressOptions,
    picker: PickerOptions,
    options: GatewayOptions,
    logs: LogOptions,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="All settings; reloaded on SIGHUP. Options on this line win over it."),
    ] = None,
) -> None:
    """Run an endpoint picker for Envoy, which carries the bytes.

    Envoy asks it about each request (external processing, as in Kubernetes' Gateway API Inference Extension). The
    request waits here for its turn, and Envoy then sends it to the engine that was picked. The settings are those of
    `headway serve`, whose addresses are served as well.
    """
    from headway.cli.gateway_extra import require_picker

    require_picker()
    from headway.gateway.epp.picker_listener import PickerListener, PickerSettings, check_engine, check_picker
    from headway.gateway.observing.logging_setup import LogForm
    from headway.gateway.process import serve as run

    settings = PickerSettings(picker.grpc_listen, picker.envoy_timeout, picker.fallbacks, picker.grpc_tls)

    def read() -> Settings:
        wanted = settings_of(config, address, options)
        check_picker(settings, wanted)
        return wanted

    try:
        is_complete = run(
            read(),
            read if config is not None else None,
            log_requests=logs.log_requests,
            log_form=LogForm(logs.log_format, logs.log_level),
            beside=lambda gateway: PickerListener(gateway, settings),
            check_found=check_engine,
        )
    except ValueError as error:
        raise UserMistake(str(error)) from error
    except OSError as error:
        raise UserMistake(
            f"the endpoint picker cannot start: {error.strerror or error}; check the addresses and files"
        ) from error
    if not is_complete:
        raise typer.Exit(1)
