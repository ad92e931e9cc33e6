"""The manifests of deploy/kubernetes: built by kustomize, valid by published schemas, and of one piece."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.settings import Settings
from headway.gateway.settings_file import read_settings
from tests.deploy.crd_schemas import SPECS

yaml = pytest.importorskip("yaml", reason="PyYAML, of the extra `kubernetes`, is not installed")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, which comes with kubernetes-validate, is missing")

DEPLOY = Path(__file__).parents[2] / "deploy"
BUILT = ("gateway", "standby", "engines", "epp", "epp-tls")
PLAIN = (DEPLOY / "kubernetes/autoscale/scaled-object.yaml", DEPLOY / "kubernetes/autoscale/horizontal.yaml")
VERSIONS = ("1.29", "1.37")  # of Kubernetes: from unhealthyPodEvictionPolicy as a stable field on


@cache
def built(name: str) -> tuple[dict[str, Any], ...]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize in it, is not installed")
    line = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / name)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a field that is deprecated"
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def everything() -> tuple[tuple[str, dict[str, Any]], ...]:
    plain = [(file.stem, content) for file in PLAIN for content in yaml.safe_load_all(file.read_text("utf-8"))]
    return (*((name, content) for name in BUILT for content in built(name)), *plain)


def of_kind(name: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in built(name) if one["kind"] == kind]


def settings_of(name: str, folder: Path) -> Settings:
    (config,) = of_kind(name, "ConfigMap")
    file = folder / "headway.toml"
    file.write_text(config["data"]["headway.toml"], encoding="utf-8")
    return read_settings(file)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_is_valid_by_its_published_schema(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = 0
    for name, content in everything():
        if (content["apiVersion"], content["kind"]) not in SPECS:
            validator.validate(content, version, strict=True)
            checked += 1
            with pytest.raises(validator.ValidationError):
                validator.validate(content | {"specs": {}}, version, strict=True)
        assert name
    assert checked > 20


def test_each_custom_resource_is_valid_by_the_part_of_its_schema_that_it_uses() -> None:
    custom = [content for _, content in everything() if (content["apiVersion"], content["kind"]) in SPECS]
    assert {content["kind"] for content in custom} == {kind for _, kind in SPECS}
    for content in custom:
        jsonschema.validate(content["spec"], SPECS[content["apiVersion"], content["kind"]])


@pytest.mark.parametrize("name", ["gateway", "standby", "epp", "epp-tls"])
def test_the_configuration_is_one_and_listens_where_the_pod_says(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, tmp_path)
    (deployment,) = of_kind(name, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert settings.admin_listen == f"0.0.0.0:{ports['admin']}"
    assert "http" not in ports or settings.listen == f"0.0.0.0:{ports['http']}"
    assert "grpc" not in ports or f"0.0.0.0:{ports['grpc']}" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        wanted = container[probe].get("httpGet", {}).get("port") or "grpc"
        assert wanted in ports
    ends = settings.health.lame_duck_seconds + settings.health.drain_seconds
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > ends
    folders = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert settings.state.path is None or str(Path(settings.state.path).parent) in folders
    assert settings.health.ready_without_replica
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    assert settings.wire.bodies_bytes + settings.queue.max_bytes < limit
    assert deployment["spec"]["replicas"] == (1 if settings.lease.kubernetes is None else 2)
    if settings.lease.kubernetes is not None:  # one is never ready
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == "100%"


@pytest.mark.parametrize("name", ["gateway", "standby", "epp", "epp-tls"])
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    (deployment,) = of_kind(name, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if name == "gateway":
        assert pod["automountServiceAccountToken"] is False
        assert not of_kind(name, "Role")
        return
    (role,), (binding,), (account,) = (of_kind(name, kind) for kind in ("Role", "RoleBinding", "ServiceAccount"))
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [one["name"] for one in binding["subjects"]] == [account["metadata"]["name"]] == [pod["serviceAccountName"]]
    rights = {
        (resource, verb): set(rule.get("resourceNames", ()))
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    wanted = {("leases", verb) for verb in ("create", "get", "update")}
    if name.startswith("epp"):
        wanted |= {(kind, verb) for kind in ("pods", "inferencepools") for verb in ("get", "list", "watch")}
    assert rights.keys() == wanted


@pytest.mark.parametrize("name", ["standby", "epp", "epp-tls"])
def test_the_lease_is_the_one_that_the_role_is_for(name: str, tmp_path: Path) -> None:
    """Kustomize renames what has the name of a generated ConfigMap, `resourceNames` too."""
    lease = settings_of(name, tmp_path).lease.kubernetes
    assert lease is not None
    (role,) = of_kind(name, "Role")
    named = [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule]
    assert named == [[lease.partition("/")[2]]]


@pytest.mark.parametrize("name", BUILT)
def test_selectors_find_the_pods_and_ports_are_those_of_containers(name: str) -> None:
    (deployment,) = of_kind(name, "Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    ports = {one["name"] for container in template["spec"]["containers"] for one in container["ports"]}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    for service in of_kind(name, "Service"):
        assert service["spec"]["selector"]
        assert service["spec"]["selector"].items() <= labels
        assert {one["targetPort"] for one in service["spec"]["ports"]} <= ports
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        found = of_kind(name, kind)
        assert found
        for one in found:
            assert one["spec"][field]["matchLabels"]
            assert one["spec"][field]["matchLabels"].items() <= labels
    used = {one["name"] for one in template["spec"].get("volumes", ()) if "configMap" in one}
    maps = {one["configMap"]["name"] for one in template["spec"].get("volumes", ()) if "configMap" in one}
    assert maps == {one["metadata"]["name"] for one in of_kind(name, "ConfigMap")}
    assert len(used) == len(maps)


def test_with_tls_probes_ask_a_plain_port_and_files_are_those_of_the_secret(tmp_path: Path) -> None:
    """The gRPC probes of Kubernetes speak no TLS."""
    settings, (deployment,) = settings_of("epp-tls", tmp_path), of_kind("epp-tls", "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "--grpc-tls" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "grpc" not in container[probe]
        assert container[probe]["httpGet"]["port"] == "admin"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    (secret,) = [one["name"] for one in pod["volumes"] if "secret" in one]
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == secret]
    assert (settings.tls_certificate, settings.tls_key) == (f"{mount}/tls.crt", f"{mount}/tls.key")
    plain = settings_of("epp", tmp_path)
    assert replace(settings, tls_certificate=None, tls_key=None) == plain, "else as without TLS"


def test_the_parts_find_each_other(tmp_path: Path) -> None:
    (engines,) = of_kind("engines", "Deployment")
    labels = engines["spec"]["template"]["metadata"]["labels"]
    (service,), (pool,), (route,) = (
        of_kind("engines", "Service"),
        of_kind("epp", "InferencePool"),
        of_kind("epp", "HTTPRoute"),
    )
    port = service["spec"]["ports"][0]["port"]
    for name in ("gateway", "standby"):
        assert settings_of(name, tmp_path).replica_source[0].dns == f"{service['metadata']['name']}:{port}"
    assert service["spec"]["clusterIP"] == "None"
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [one["number"] for one in pool["spec"]["targetPorts"]] == [port]
    assert settings_of("epp", tmp_path).replica_source[0].inference_pool == f"default/{pool['metadata']['name']}"
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == pool["metadata"]["name"]
    picker = pool["spec"]["endpointPickerRef"]
    (grpc,) = [one for one in of_kind("epp", "Service") if one["metadata"]["name"] == picker["name"]]
    assert [one["port"] for one in grpc["spec"]["ports"]] == [picker["port"]["number"]]
    for name in ("gateway", "standby", "epp"):
        egress = of_kind(name, "NetworkPolicy")[0]["spec"]["egress"]
        assert {"podSelector": {"matchLabels": labels}} in egress[0]["to"]
    (network,) = of_kind("engines", "NetworkPolicy")
    allowed = [one["podSelector"]["matchLabels"] for one in network["spec"]["ingress"][0]["from"]]
    for name in ("gateway", "epp"):
        (deployment,) = of_kind(name, "Deployment")
        assert deployment["spec"]["template"]["metadata"]["labels"] in allowed


def test_autoscalers_ask_for_metrics_that_there_are() -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text("utf-8")
    (engines,) = of_kind("engines", "Deployment")
    for file in PLAIN:
        (content,) = yaml.safe_load_all(file.read_text("utf-8"))
        assert content["spec"]["scaleTargetRef"]["name"] == engines["metadata"]["name"]
    (scaled,) = yaml.safe_load_all(PLAIN[0].read_text("utf-8"))
    queries = [one["metadata"]["query"] for one in scaled["spec"]["triggers"]]
    for query in queries:
        assert f"`{query.partition('headway_')[1]}{query.partition('headway_')[2].partition(')')[0]}`" in page
