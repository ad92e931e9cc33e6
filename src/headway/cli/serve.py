"""`headway serve`: runs one OpenAI endpoint with a real queue, in front of any engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from headway.bench.user_mistake import UserMistake
from headway.cli.command_options import ORDERING
from headway.cli.grouped_options import grouped
from headway.cli.name_completion import complete_hardware, complete_model, policies_of

if TYPE_CHECKING:
    from headway.gateway.settings import Settings

Value = TypeVar("Value")
_SIMULATED = ("embedded_replicas", "hardware", "model")


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """Where the gateway listens: as one address, or host and port apart."""

    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address to listen on. Default: 127.0.0.1:8000.")
    ] = None
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Only the host of --listen.")] = None
    port: Annotated[int | None, typer.Option(min=0, max=65_535, metavar="PORT", help="Only the port of --listen.")] = (
        None
    )

    def address(self, default: str) -> str:
        """The address to listen on; parts that are not given are those of `default`, an address itself.

        Raises:
            UserMistake: --listen contradicts --host or --port.
            ValueError: an address is not HOST:PORT.
        """
        from headway.config.address import host_and_port

        if self.host is None and self.port is None:
            return default if self.listen is None else self.listen
        host, port = host_and_port(default if self.listen is None else self.listen, "listen")
        wanted_host, wanted_port = _given(self.host, host).strip("[]"), _given(self.port, port)
        if self.listen is not None and (wanted_host, wanted_port) != (host, port):
            part = f"--host {self.host}" if wanted_host != host else f"--port {self.port}"
            raise UserMistake(f"--listen {self.listen} and {part} contradict each other; give one of them")
        return f"[{wanted_host}]:{wanted_port}" if ":" in wanted_host else f"{wanted_host}:{wanted_port}"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Settings on the command line; each replaces its key of the configuration file."""

    replica: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An engine, without /v1; repeatable. Without any, engines are simulated."),
    ] = None
    replica_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE", help="Environment variable with the API key that the engines named on this line want."
        ),
    ] = None
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/NAME",
            help="A Kubernetes InferencePool, whose pods are watched: those that are ready are the engines.",
        ),
    ] = None
    replica_dns: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A name whose addresses are the engines; looked up again and again."),
    ] = None
    replica_file: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="A file that names the engines, as Prometheus' file_sd; watched."),
    ] = None
    ordering: Annotated[
        str | None,
        typer.Option(
            *ORDERING,
            metavar="NAME",
            help="The order of the queue (`headway policies`).",
            autocompletion=policies_of("ordering"),
        ),
    ] = None
    routing: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How a replica is chosen.", autocompletion=policies_of("routing")),
    ] = None
    embedded_replicas: Annotated[int | None, typer.Option(min=0, metavar="N", help="Number of simulated engines.")] = (
        None
    )
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="GPU of the simulated engines.", autocompletion=complete_hardware),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model of the simulated engines.", autocompletion=complete_model),
    ] = None
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Record lengths and times, never text, as a trace. %Y, %m, %d … in the name stand for the date.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the log on stderr holds, and how it is written."""

    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log one line for every request.")] = False
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="Lines of the log. Default: text on a terminal, JSON elsewhere."),
    ] = None
    log_level: Annotated[
        Literal["info", "warning", "error"],
        typer.Option(help="The least level that is logged; the lines of requests are info."),
    ] = "info"


@grouped
def serve(
    address: AddressOptions,
    options: GatewayOptions,
    logs: LogOptions,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="All settings; reloaded on SIGHUP. Options on this line win over it."),
    ] = None,
) -> None:
    """Run one OpenAI endpoint with a queue, in front of engines.

    It accepts OpenAI requests, queues them by a policy, and sends them to engines that have room. It runs until SIGTERM
    or Ctrl-C. It then accepts no new request, finishes those it has, and prints a summary.
    """
    from headway.cli.gateway_extra import require_gateway

    require_gateway()
    from headway.gateway.observing.logging_setup import LogForm
    from headway.gateway.process import serve as run

    def read() -> Settings:
        return settings_of(config, address, options)

    try:
        is_complete = run(
            read(),
            read if config is not None else None,
            log_requests=logs.log_requests,
            log_form=LogForm(logs.log_format, logs.log_level),
        )
    except ValueError as error:
        raise UserMistake(str(error)) from error
    except OSError as error:
        raise UserMistake(
            f"the gateway cannot start: {error.strerror or error}; check the addresses and files"
        ) from error
    if not is_complete:
        raise typer.Exit(1)


def settings_of(config: Path | None, address: AddressOptions, options: GatewayOptions) -> Settings:
    """The settings of the file, with those of the command line in their place. Raises ValueError."""
    from dataclasses import replace

    from headway.gateway.settings import ReplicaSettings, ReplicaSourceSettings, Settings
    from headway.gateway.settings_file import check, read_settings

    base = Settings() if config is None else read_settings(config)
    has_engines = options.replica or options.pool or options.replica_dns or options.replica_file
    if options.replica_key_env is not None and not has_engines:
        raise ValueError(
            "--replica-key-env is for engines that --replica, --pool, --replica-dns or --replica-file names; in a file "
            "the key is `api_key_env`"
        )
    each = {} if options.replica_key_env is None else {"api_key_env": options.replica_key_env}
    named = ((options.pool, None, None), (None, options.replica_dns, None), (None, None, options.replica_file))
    sources = tuple(
        ReplicaSourceSettings(inference_pool=pool, dns=name, file=file, each=each)
        for pool, name, file in named
        if (pool, name, file) != (None, None, None)
    )
    replicas = tuple(ReplicaSettings(url=url, api_key_env=options.replica_key_env) for url in options.replica or ())
    settings = replace(
        base,
        listen=address.address(base.listen),
        replica=replicas or base.replica,
        replica_source=sources or base.replica_source,
        record=_given(options.record, base.record),
        policies=replace(
            base.policies,
            ordering=_given(options.ordering, base.policies.ordering),
            routing=_given(options.routing, base.policies.routing),
        ),
        embedded=replace(
            base.embedded,
            replicas=_given(options.embedded_replicas, base.embedded.replicas),
            hardware=_given(options.hardware, base.embedded.hardware),
            model=_given(options.model, base.embedded.model),
        ),
    )
    is_named = settings.replica or settings.replica_source
    unused = [name for name in _SIMULATED if getattr(options, name) is not None] if is_named else []
    if unused:
        typed = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise ValueError(f"{typed} describes simulated engines, and there are replicas; leave it out, or the replicas")
    check(settings)
    return settings


def _given(typed: Value | None, base: Value) -> Value:
    return base if typed is None else typed
