"""The manifests render, are valid for three minors of Kubernetes, and are as locked up as said."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from inferx.up.command import AVAILABLE_RUNTIMES

from .kustomize import FOLDERS, OUR_IMAGE, ROOT, find, rendered, workloads

# Kinds of the Prometheus operator: the validator ships Kubernetes' own kinds only. Their fields are
# checked by `test_monitors_find_the_services` and `test_rules_use_metrics_that_exist`.
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule"}
# Pods that may not be `restricted`, as their manifests explain.
UNRESTRICTED = {"nodeagent", "logs"}
MINORS = list(dict.fromkeys(all_versions()))[-3:]
CLUSTER_SCOPED = {"Namespace", "PriorityClass", "StorageClass"}


@functools.cache
def validate(document: str, version: str) -> None:
    """Once for each object, however many folders it is in: the schemas are large."""
    kubernetes_validate.validate(json.loads(document), version, strict=True)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid(folder: str, minor: str) -> None:
    version = ".".join(minor.split(".")[:2])
    for one in rendered(folder):
        if one["kind"] not in WITHOUT_SCHEMA:
            validate(json.dumps(one), version)


def test_validation_is_strict() -> None:
    wrong = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"prots": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, ".".join(MINORS[-1].split(".")[:2]), strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_have_namespace_and_labels(folder: str) -> None:
    for one in rendered(folder):
        meta, where = one["metadata"], f"{one['kind']}/{one['metadata']['name']}"
        assert ("namespace" in meta) == (one["kind"] not in CLUSTER_SCOPED), where
        if one["kind"] != "ConfigMap":
            assert meta["labels"]["app.kubernetes.io/part-of"] == "inferx", where


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_and_no_registry_is_written_down(folder: str) -> None:
    for one in rendered(folder):
        assert one["kind"] != "Secret", "secrets are made by the installer"
    for name, pod in workloads(folder).items():
        for container in pod["containers"] + pod.get("initContainers", []):
            host = container["image"].split("/")[0]
            assert "." not in host.split(":")[0], f"{name}: {container['image']} names a registry"
            assert ":" in container["image"], f"{name}: {container['image']} names no version"
            for variable in container.get("env", []):
                secret = re.search(r"(?i)(password|apikey|secret|token)$", variable["name"])
                assert not (secret and "value" in variable), f"{name}: {variable['name']}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_restricted(folder: str) -> None:
    """What the pod security standard `restricted` asks for, and a read-only root."""
    for name, pod in workloads(folder).items():
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"] + pod.get("initContainers", []):
            given = container["securityContext"]
            assert given["readOnlyRootFilesystem"] is True, name
            assert given["capabilities"]["drop"] == ["ALL"], name
            assert not given.get("privileged"), name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
            assert given["allowPrivilegeEscalation"] is False, name
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert not any(pod.get(flag) for flag in ("hostPID", "hostNetwork", "hostIPC")), name
        if name in UNRESTRICTED:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
        for container in pod["containers"] + pod.get("initContainers", []):
            assert "add" not in container["securityContext"]["capabilities"], name


def test_each_capability_of_the_node_agent_has_its_reason() -> None:
    text = (ROOT / "k8s" / "base" / "nodeagent.yaml").read_text()
    granted = workloads("base")["nodeagent"]["containers"][0]["securityContext"]["capabilities"]
    for capability in granted["add"]:
        assert re.search(rf"- {capability}  # \w{{3,}}", text), f"{capability}: say why"


@pytest.mark.parametrize("folder", ["base", "eks", "options/keycloak"])
def test_every_pod_has_a_network_policy(folder: str) -> None:
    policies = [one["spec"] for one in rendered(folder) if one["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies, "default deny"
    chosen = {
        policy["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
        for policy in policies
        if policy["podSelector"]
    }
    assert chosen == workloads(folder).keys()


@pytest.mark.parametrize("folder", ["base", "eks", "options/keycloak"])
def test_service_accounts_may_do_nothing(folder: str) -> None:
    """No service talks to the API server, so none has a role or a token."""
    accounts = {
        one["metadata"]["name"]: one for one in rendered(folder) if one["kind"] == "ServiceAccount"
    }
    assert not any("Role" in one["kind"] for one in rendered(folder))
    for name, pod in workloads(folder).items():
        assert pod["serviceAccountName"] == name
        assert accounts[name]["automountServiceAccountToken"] is False


def test_eks_changes_what_it_says() -> None:
    agent, etcd = workloads("eks")["nodeagent"], find("eks", "StatefulSet", "etcd")
    volumes = {volume["name"]: volume for volume in agent["volumes"]}
    assert "docker" not in yaml.safe_dump(agent)
    assert volumes["snapshots"].keys() == {"name", "ephemeral"}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == "inferx-cache"
    assert agent["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "karpenter.sh/nodepool" in agent["nodeSelector"]
    assert etcd["spec"]["replicas"] == 3
    assert etcd["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "inferx-gp3"
    account = find("eks", "ServiceAccount", "nodeagent")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    assert find("eks", "Ingress", "gateway")["spec"]["ingressClassName"] == "alb"
    assert "requests.nvidia.com/gpu" in find("eks", "ResourceQuota", "inferx")["spec"]["hard"]
    kinds = {one["kind"] for one in rendered("eks")}
    assert kinds >= {"ServiceMonitor", "PrometheusRule", "LimitRange", "PriorityClass"}
    assert "logs" in workloads("eks")


def test_monitors_find_the_services() -> None:
    for monitor in rendered("options/monitoring"):
        if monitor["kind"] != "ServiceMonitor":
            continue
        labels = monitor["spec"]["selector"]["matchLabels"]
        service = find("base", "Service", labels["app.kubernetes.io/name"])
        assert labels.items() <= service["metadata"]["labels"].items()
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {one["port"] for one in monitor["spec"]["endpoints"]} <= ports


def test_rules_use_metrics_that_exist() -> None:
    """Every `inferx_*` name of an alert is one that the code makes."""
    text = "\n".join(path.read_text() for path in (ROOT / "python").rglob("*.py"))
    rules = find("options/monitoring", "PrometheusRule", "inferx")["spec"]["groups"]
    for rule in (rule for group in rules for rule in group["rules"]):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        for name in re.findall(r"\binferx_(\w+)", rule["expr"]):
            stem = re.sub(r"_(bucket|count|sum|total)$", "", name)
            parts = (stem, stem.removeprefix("gateway_"), re.sub(r"^call_|_seconds$", "", stem))
            assert any(f'"{part}"' in text or f'_{part}"' in text for part in parts), name


def test_checkov_exceptions_have_reasons() -> None:
    """`make checkov` compares this file with what checkov finds; the package is large."""
    listed: list[dict[str, Any]] = yaml.safe_load(
        Path(ROOT / "k8s" / "checkov-exceptions.yaml").read_text()
    )
    count = sum(len(one["resources"]) for one in listed)
    assert count < 20, "the manifests must not get worse"
    for one in listed:
        assert len(one["reason"]) > 20, one["check"]


@pytest.mark.parametrize("folder", ["base", "eks"])
def test_the_runtime_is_one_that_the_agent_has(folder: str) -> None:
    maps = [one for one in rendered(folder) if "node.json" in one.get("data", {})]
    assert json.loads(maps[0]["data"]["node.json"])["runtime"] in AVAILABLE_RUNTIMES


def test_our_image_is_one_for_all_services() -> None:
    pods = workloads("base")
    images = {
        container["image"] for pod in pods.values() for container in pod["containers"]
        if container["image"].startswith(OUR_IMAGE)
    }  # fmt: skip
    assert len(images) == 1
