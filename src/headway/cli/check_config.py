"""`headway check-config FILE`: checks whether `headway serve` and `headway epp` would start with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check_config(file: Annotated[Path, typer.Argument(help="A TOML file for `--config`.")]) -> None:
    """Check a configuration file of serve and epp.

    It reads the file and the files named in it, and reports the first mistake.
    """
    from headway.bench.user_mistake import UserMistake
    from headway.cli.gateway_extra import require_gateway

    require_gateway()
    from headway.config.atomic_file import check_folder
    from headway.gateway.api_keys import AdminKeys, ApiKeys
    from headway.gateway.batch_api.batch_store import check_batch_folder
    from headway.gateway.certificate import tls_context
    from headway.gateway.embedded.embedded_engine import EmbeddedEngine
    from headway.gateway.learned.queue_tuning import check_tuning
    from headway.gateway.observing.tracing import check_tracing
    from headway.gateway.openai.prompt_count import PromptCount
    from headway.gateway.openai.token_ratio import TokenRatio
    from headway.gateway.settings_file import read_settings
    from headway.gateway.signed_tokens import signed_tokens

    try:
        settings = read_settings(file)
        ApiKeys(settings.tenant, signed_tokens(settings.jwt))
        AdminKeys(settings)
        check_tuning(settings)
        PromptCount(settings.tokenizers, TokenRatio())
        tls_context(settings)
        check_folder("record", settings.record)
        check_folder("state.path", settings.state.path)
        check_batch_folder(settings.batches.folder)
        if settings.tracing.endpoint is not None:
            check_tracing(settings.tracing)
        if not settings.replica and not settings.replica_source:
            EmbeddedEngine(settings.embedded)
    except ValueError as error:
        sentence = str(error)
        raise UserMistake(sentence if sentence.startswith(f"{file}: ") else f"{file}: {sentence}") from error
    sources = [source.label for source in settings.replica_source]
    engines = "none, so engines are simulated" if settings.embedded.replicas else "none, they come by /admin/replicas"
    if settings.replica:
        engines = str(len(settings.replica))
    if sources:
        engines = f"{len(settings.replica)} and those of {', '.join(sources)}"
    ordering = settings.policies.ordering
    if settings.auto.on:
        ordering = f"auto, for {settings.auto.objective}, in place of {ordering}"
    print(f"{file}: no mistake found; replicas: {engines}; tenants: {len(settings.tenant)}; ordering: {ordering}")
