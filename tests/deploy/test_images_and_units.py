"""The image, the compose file and the systemd unit: of one piece with the package and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.settings_file import read_settings

yaml = pytest.importorskip("yaml", reason="PyYAML, of the extra `kubernetes`, is not installed")
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


class ComposeLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with the tag by which one compose file takes away what another says."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.load((DEPLOY / "compose" / name).read_text("utf-8"), ComposeLoader))


def test_the_image_has_the_packages_that_the_project_names() -> None:
    extras = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    assert {"epp", "kubernetes"} <= set(extras[1].split(","))
    versions = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert versions is not None
    assert tuple(map(int, versions[1].split("."))) >= tuple(map(int, PROJECT["requires-python"][2:].split(".")))


def test_what_it_copies_is_there_and_not_ignored() -> None:
    copied = re.findall(r"^COPY ((?!--from)\S.*)$", DOCKERFILE, re.MULTILINE)
    sources = [word for line in copied for word in line.split()[:-1]]
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split() if line[0] == "!"}
    assert set(sources) == kept
    for source in sources:
        assert (ROOT / source).exists()
    assert PROJECT["readme"] in sources


def test_it_runs_as_nobody_else_and_says_whether_it_answers() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 1_000
    check = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert check is not None
    assert "/health'" in check[1]
    assert DOCKERFILE.index("USER ") < DOCKERFILE.index("ENTRYPOINT")


def test_the_compose_file_is_of_one_piece(tmp_path: Path) -> None:
    file = compose("compose.yaml")
    services = file["services"]
    assert set(services) == {"gateway", "engine-0", "engine-1", "prometheus", "grafana"}
    settings = read_settings(DEPLOY / "compose" / "headway.toml")
    assert {replica.url for replica in settings.replica} == {"http://engine-0:8000", "http://engine-1:8000"}
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in file["volumes"] or (DEPLOY / "compose" / source).exists(), source
        if "build" in service:
            assert (DEPLOY / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", ())) <= set(services)
    grace = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.health.lame_duck_seconds + settings.health.drain_seconds
    targets = [
        target
        for job in yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    ]
    assert {target.partition(":")[0] for target in targets} <= set(services)
    assert settings.admin_listen == "0.0.0.0:8001"
    assert "gateway:8001" in targets
    for port in services["gateway"]["ports"] + services["grafana"]["ports"]:
        assert port.startswith("127.0.0.1:"), "this machine alone reaches it"
    assert set(compose("compose.vllm.yaml")["services"]) <= set(services)


def test_grafana_finds_its_source_and_the_dashboard() -> None:
    folder = DEPLOY / "compose" / "grafana"
    (source,) = yaml.safe_load((folder / "datasource.yaml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text("utf-8"))["providers"]
    mounts = dict(mount.split(":")[:2] for mount in compose("compose.yaml")["services"]["grafana"]["volumes"])
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert mounts["../../docs/grafana"] == provider["options"]["path"]
    assert (ROOT / "docs" / "grafana" / "headway.json").is_file()


def test_the_unit_gives_the_gateway_time_to_end() -> None:
    unit = (DEPLOY / "systemd" / "headway.service").read_text("utf-8")
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    health = read_settings(DEPLOY / "compose" / "headway.toml").health
    assert int(stop[1]) > health.lame_duck_seconds + health.drain_seconds


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "headway"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit = (DEPLOY / "systemd" / "headway.service").read_text("utf-8").replace("/opt/headway/bin/headway", str(program))
    file = tmp_path / "headway.service"
    file.write_text(unit, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if "headway.service" in line]
    assert (done.returncode, about_it) == (0, [])
    file.write_text(unit.replace("KillMode=mixed", "KilMode=mixed"), encoding="utf-8")
    told = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False).stderr
    assert "KilMode" in told
