"""The page of the configuration is fresh, and names every key with the default that the code has."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from headway.gateway import settings, settings_file, settings_page
from headway.gateway.wire.limits import WireLimits

PAGE = Path(__file__).parents[3] / "docs" / "gateway-config.md"
SECTIONS: dict[str, Any] = {
    "Top level": settings.Settings,
    "`[policies]`": settings.PolicySettings,
    "`[queue]`": settings.QueueSettings,
    "`[service_tiers]`": settings.ServiceTierSettings,
    "`[offline]`": settings.OfflineSettings,
    "`[requests]`": settings.RequestSettings,
    '`[models."NAME"]`': settings.ModelSettings,
    "`[health]`": settings.HealthSettings,
    "`[[replica]]`": settings.ReplicaSettings,
    "`[[replica_source]]`": settings.ReplicaSourceSettings,
    "`[[tenant]]`": settings.TenantSettings,
    "`[tenant.budget]`": settings.BudgetSettings,
    "`[jwt]`": settings.JwtSettings,
    "`[tls]`": settings.TlsSettings,
    "`[admin]`": settings.AdminSettings,
    "`[scaling]`": settings.ScalingSettings,
    "`[lease]`": settings.LeaseSettings,
    "`[state]`": settings.StateSettings,
    "`[batches]`": settings.BatchSettings,
    "`[tuning]`": settings.TuningSettings,
    "`[auto]`": settings.AutoSettings,
    "`[tracing]`": settings.TracingSettings,
    "`[embedded]`": settings.EmbeddedSettings,
    "`[wire]`": WireLimits,
}
TABLES = {"replica", "replica_source", "tenant", "models"}


def rows() -> dict[str, dict[str, str]]:
    """Section -> key -> its default as written."""
    found: dict[str, dict[str, str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = found[line[3:]] = {}
        elif row := re.match(r"\| `([a-z0-9_]+)` \| (.*?) \| .+ \|$", line):
            section[row[1]] = row[2]
    return found


def test_the_page_in_the_docs_is_fresh() -> None:
    """If this fails: python -m headway.gateway.settings_page docs/gateway-config.md."""
    assert PAGE.read_text(encoding="utf-8") == settings_page.render()


def test_a_key_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.TuningSettings, "__doc__", "Live tuning.\n\n    Attributes:\n        on: Runs.\n    ")
    with pytest.raises(ValueError, match="docstring of TuningSettings"):
        settings_page.render()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_there_with_its_default(section: str) -> None:
    written = rows()[section]
    kinds = get_type_hints(SECTIONS[section])
    keys = [one for one in fields(SECTIONS[section]) if not is_dataclass(kinds[one.name]) and one.name not in TABLES]
    assert list(written) == [one.name for one in keys]
    for one in keys:
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if default is MISSING or default is None:
            assert written[one.name] == ("**needed**" if default is MISSING else "none")
        else:
            told = tomllib.loads(f"x = {written[one.name].strip('`')}")["x"]
            assert told == (list(default) if isinstance(default, tuple) else default), one.name


def test_no_section_is_left_out() -> None:
    assert list(rows()) == list(SECTIONS)
    nested = {name for name, kind in get_type_hints(settings.Settings).items() if is_dataclass(kind)} | TABLES
    assert nested == {section.strip("`[]").partition(".")[0] for section in SECTIONS} - {"Top level"}


def test_each_example_in_the_guide_is_a_configuration(tmp_path: Path) -> None:
    pages = [PAGE.parent / "serve.md", *sorted((PAGE.parent / "serve").glob("*.md"))]
    examples = [part.split("```")[0] for page in pages for part in page.read_text("utf-8").split("```toml\n")[1:]]
    file, read = tmp_path / "gateway.toml", []
    for example in examples:
        file.write_text(example.replace("…64 hexadecimal digits…", "a" * 64), encoding="utf-8")
        read.append(settings_file.read_settings(file))
    assert (read[0].state.path, read[0].tracing.sample_share, len(read[0].replica)) == ("headway-state.json", 0.1, 1)
    assert any(one.aliases for one in read)
    assert any(one.admin.key_sha256 for one in read)
    assert any(tenant.budget.tokens_per_day for one in read for tenant in one.tenant)
    assert any(one.jwt.issuer for one in read)
