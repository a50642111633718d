"""What the manifests set is read by the code, and what the code reads can be set: both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferx import config

from .kustomize import ROOT, environment, find, rendered, services

# Set for others than our code.
READ_BY_OTHERS = {
    "NVIDIA_VISIBLE_DEVICES": "the NVIDIA container runtime",
    "NVIDIA_DRIVER_CAPABILITIES": "the NVIDIA container runtime",
    "INFERX_STOP_PODS": "services/nodeagent.py",
}
# Read by our code and not set in a manifest.
NOT_IN_MANIFESTS = {
    "ETCD_ADDR": "the older name of ETCD_ADDRS",
    "AUDITDB_ADDR": "given as AUDITDB_ADDR_FILE, so that it is not in the process's environment",
    "INFERX_ADMIN_APIKEY": "given as INFERX_ADMIN_APIKEY_FILE, for the same reason",
    "INFERX_KEY_SECRET": "given as INFERX_KEY_SECRET_FILE, for the same reason",
    "INFERX_CRASH_AFTER_WRITES": "for tests of crashes only",
    "INFERX_LISTENER": "in node.json",
    "INFERX_LISTEN_FD": "a descriptor that `inferx up` hands over",
    "INFERX_STOPPING_FD": "a descriptor that `inferx up` hands over",
    "INFERX_DATA_DIR": "in node.json",
    "INFERX_LOG_FORMAT": "in node.json",
    "INFERX_LOG_LEVEL": "in node.json",
}
INSTALLS = ("base", "eks", "options/keycloak")
# The ports that each service listens on, as entries of the configuration.
PORTS = {
    "statesvc": {"grpc": "statesvc_port", "metrics": "metrics_port"},
    "scheduler": {"grpc": "scheduler_port", "metrics": "metrics_port"},
    "gateway": {"http": "gateway_port", "metrics": "metrics_port"},
    "nodeagent": {
        "podmgr": "podmgr_port", "state": "agent_state_port", "metrics": "metrics_port"
    },
}  # fmt: skip


def load(folder: str, service: str, tmp_path: Path) -> config.NodeConfig:
    """The configuration that `service` reads when it is started as the manifest says."""
    maps = [
        one for one in rendered(folder) if one["kind"] == "ConfigMap" and "node.json" in one["data"]
    ]
    assert len(maps) == 1
    path = tmp_path / "node.json"
    path.write_text(maps[0]["data"]["node.json"])
    given = environment(services(folder)[service])
    for name in given:
        if name.endswith("_FILE"):
            secret = tmp_path / name
            secret.write_text("postgresql://user@db/a-name-as-long-as-a-key")
            given[name] = str(secret)
    fields = {"POD_IP": "10.1.2.3", "NODE_NAME": "node-7"}
    return config.load(path, {**given, **{name: fields[name] for name in fields if name in given}})


@pytest.mark.parametrize("folder", INSTALLS)
def test_every_variable_of_a_manifest_is_read(folder: str) -> None:
    for service, container in services(folder).items():
        unread = environment(container).keys() - set(config.variables()) - READ_BY_OTHERS.keys()
        assert not unread, f"{service}: nothing reads {sorted(unread)}"


def test_every_variable_that_is_read_is_in_a_manifest() -> None:
    given = {
        name
        for folder in INSTALLS
        for container in services(folder).values()
        for name in environment(container)
    }
    missing = set(config.variables()) - given - NOT_IN_MANIFESTS.keys()
    assert not missing, f"set {sorted(missing)} in a manifest, or say why not"
    needless = NOT_IN_MANIFESTS.keys() & given
    assert not needless, f"these are set: {sorted(needless)}"


@pytest.mark.parametrize("folder", INSTALLS)
@pytest.mark.parametrize("service", sorted(PORTS))
def test_services_start_with_their_manifest(folder: str, service: str, tmp_path: Path) -> None:
    loaded = load(folder, service, tmp_path)
    assert loaded.warnings == ()
    assert loaded.run_service == service
    assert loaded.host_ip == "10.1.2.3"
    assert loaded.log_format == "json"
    assert bool(loaded.etcd_addrs) == (service == "statesvc")
    if service != "statesvc":
        assert loaded.state_svc_addrs[0].startswith("statesvc")


@pytest.mark.parametrize("folder", INSTALLS)
@pytest.mark.parametrize("service", sorted(PORTS))
def test_ports_are_those_that_the_code_listens_on(
    folder: str, service: str, tmp_path: Path
) -> None:
    loaded, container = load(folder, service, tmp_path), services(folder)[service]
    listened = {name: getattr(loaded, entry) for name, entry in PORTS[service].items()}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == listened
    offered = find(folder, "Service", service)["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in offered} == listened
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in listened


@pytest.mark.parametrize("folder", INSTALLS)
def test_addresses_of_variables_are_services(folder: str) -> None:
    for container in services(folder).values():
        for name, value in environment(container).items():
            if not name.endswith(("_ADDR", "_ADDRS")):
                continue
            host, _, port = value.removeprefix("https://").partition(":")
            service = find(folder, "Service", host.split(".")[0])
            assert int(port) in [one["port"] for one in service["spec"]["ports"]], name


@pytest.mark.parametrize("folder", INSTALLS)
def test_liveness_asks_nobody_else(folder: str) -> None:
    """/healthz answers by itself (tests/unit/test_health.py); /readyz asks for dependencies."""
    for service, container in services(folder).items():
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", service
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", service


@pytest.mark.parametrize("folder", INSTALLS)
def test_secrets_are_mounted_where_they_are_read(folder: str, tmp_path: Path) -> None:
    for service, container in services(folder).items():
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        wanted = [value for name, value in environment(container).items() if name.endswith("_FILE")]
        if service == "statesvc":
            wanted += [load(folder, service, tmp_path).etcd.key]
        for path in wanted:
            assert str(Path(path).parent) in mounts, f"{service}: {path}"


def test_the_eks_configuration_adds_only_the_bucket() -> None:
    base, eks = (
        json.loads((ROOT / "k8s" / name / "node.json").read_text()) for name in ("base", "eks")
    )
    added = {"enableBlobStore", "blobStoreType", "blobStoreConfig"}
    assert {name: value for name, value in eks.items() if name not in added} == base
    assert eks["blobStoreType"] == "s3"
