"""A node's configuration: file, environment, and errors that name where an entry came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inferx import config
from inferx.config import Secret, SimulatedGpu
from inferx.errors import BadRequest, ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


def load(tmp_path: Path, document: object, **env: str) -> config.NodeConfig:
    path = tmp_path / "node.json"
    path.write_text(json.dumps(document))
    return config.load(path, env)


def test_the_default_file_of_the_services_is_valid() -> None:
    loaded = config.load(ROOT / "services" / "node.json", {})
    assert loaded.warnings == ()
    assert loaded.gateway_port == 4000


def test_without_a_file_everything_has_a_value() -> None:
    loaded = config.load(None, {})
    assert loaded.etcd_addrs == ()
    assert loaded.scheduler_addr == "127.0.0.1:1238"
    assert loaded.resources.cpu_millis > 0
    assert loaded.resources.mem_mb > 0


def test_a_complete_file(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {
            "nodeName": "gpu-7", "etcdAddrs": ["http://etcd:2379", "https://b:2379"],
            "hostIp": "10.1.2.3", "podMgrPort": 2233, "qletStateSvcPort": 2236,
            "statSvcPort": 2237, "schedulerPort": 2238, "gatewayPort": 5000,
            "stateSvcAddrs": ["http://localhost:1237"],
            "auditdbAddr": "postgresql://u:${DB_PASSWORD}@db/audit",
            "resources": {"CPU": 30000, "Mem": 400000, "GPUs": "0-3", "ContextOverhead": 500,
                          "MaxContextPerGPU": 2, "MaxPods": 40},
            "snapshotDir": "/snap", "enableBlobStore": True, "blobStoreType": "s3",
            "blobStoreConfig": {"bucket": "b"}, "sharemem": {"size": 20, "hugepage": True},
            "tlsconfig": {"enable": True, "cert": "c", "key": "k"},
            "keycloakconfig": {"url": "http://k", "realm": "r"},
            "etcdconfig": {"username": "root", "password": "hunter2", "prefix": "/a"},
            "simulatedGPUs": {"type": "H100", "count": 2, "vramMB": 80000},
            "tsotCniPort": 1234,
        },
        DB_PASSWORD="hunter2",
    )  # fmt: skip
    assert loaded.node_name == "gpu-7"
    assert loaded.etcd_addrs == ("etcd:2379", "https://b:2379")
    assert loaded.state_svc_addrs == ("localhost:1237",)
    assert loaded.auditdb_addr.reveal() == "postgresql://u:hunter2@db/audit"
    assert loaded.simulated_gpus == (SimulatedGpu("H100", 2, 80000),)
    assert loaded.resources.max_context_per_gpu == 2
    assert loaded.resources.max_pods == 40
    assert loaded.scheduler_addr == "127.0.0.1:2238"
    assert loaded.warnings == ()
    assert "hunter2" not in repr(loaded)


def test_secrets_may_be_given_as_files(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("key-1\n")
    loaded = load(tmp_path, {}, INFERX_ADMIN_APIKEY_FILE=str(secret))
    assert loaded.admin_apikey.reveal() == "key-1"
    secret.write_text("")
    for env, problem in (
        ({}, "is empty"),
        ({"INFERX_ADMIN_APIKEY": "key-2"}, "give one"),
        ({"INFERX_ADMIN_APIKEY_FILE": "/nowhere"}, "/nowhere"),
    ):
        with pytest.raises(ConfigError, match=problem) as raised:
            load(tmp_path, {}, **{"INFERX_ADMIN_APIKEY_FILE": str(secret), **env})
        assert "INFERX_ADMIN_APIKEY_FILE" in str(raised.value)


def test_the_environment_wins(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"nodeName": "file", "schedulerPort": 1, "keycloakconfig": {"url": "u", "realm": "file"}},
        NODE_NAME="env", POD_IP="10.0.0.9", ETCD_ADDRS="a:1, b:2", STATESVC_ADDR="s:3",
        SCHEDULER_PORT="4", STATESVC_PORT="5", KEYCLOAK_REALM="env", RUN_SERVICE="StateSvc",
        INFERX_ADMIN_APIKEY="key-1", AUDITDB_ADDR="postgresql://x",
    )  # fmt: skip
    assert (loaded.node_name, loaded.host_ip) == ("env", "10.0.0.9")
    assert loaded.etcd_addrs == ("a:1", "b:2")
    assert loaded.state_svc_addrs == ("s:3",)
    assert (loaded.scheduler_port, loaded.statesvc_port) == (4, 5)
    assert (loaded.keycloak.url, loaded.keycloak.realm) == ("u", "env")
    assert loaded.run_service == "statesvc"
    assert loaded.admin_apikey == Secret("key-1")
    assert "key-1" not in f"{loaded!r} {loaded.admin_apikey} {loaded.admin_apikey!r}"


@pytest.mark.parametrize(
    ("document", "env", "error"),
    [
        ({"nodeName": "a/b"}, {}, "node.json: nodeName: 'a/b' is not a legal name"),
        ({}, {"NODE_NAME": "a b"}, "environment NODE_NAME: nodeName: 'a b'"),
        ({"gatewayPort": 0}, {}, "node.json: gatewayPort: expected integer within 1..65535"),
        ({}, {"SCHEDULER_PORT": "x"}, "environment SCHEDULER_PORT: expected a port number"),
        ({"etcdAddrs": ["nowhere"]}, {}, "node.json: etcdAddrs: expected host:port"),
        ({}, {"ETCD_ADDRS": "nowhere"}, "environment ETCD_ADDRS: etcdAddrs: expected host:port"),
        ({"resources": {"GPUs": "3-1"}}, {}, "resources.GPUs: expected Auto, all, none or a list"),
        ({"resources": {"CPU": "many"}}, {}, "resources.CPU: expected integer millicores"),
        ({}, {"INFERX_LISTENER": "x"}, "environment INFERX_LISTENER: listener: expected one of"),
        ({"runtime": "vm"}, {}, "runtime: expected one of process, runc"),
        ({"auditdbAddr": "${NOT_SET}"}, {}, "auditdbAddr: environment variable NOT_SET is not set"),
        ({"hostIp": "here"}, {}, "hostIp: 'here' is not an IP address"),
        ({"hostIpCidr": "here"}, {}, "hostIpCidr: 'here' is not a network"),
        ({}, {"RUN_SERVICE": "cook"}, "environment RUN_SERVICE: 'cook' is not one of statesvc"),
        ([], {}, "node.json: expected a JSON object"),
    ],
)
def test_an_error_names_entry_and_origin(
    tmp_path: Path, document: Any, env: dict[str, str], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, document, **env)
    assert error in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read"):
        config.load(tmp_path / "absent.json", {})


def test_errors_do_not_show_passwords(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"etcdAddrs": ["http://root:hunter2@etcd"]})
    assert "hunter2" not in caught.value.message


def test_an_unknown_entry_is_a_warning(tmp_path: Path) -> None:
    assert load(tmp_path, {"gatewayProt": 1}).warnings == (
        "gatewayProt: unknown field, kept but without effect",
    )


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("Auto", (0, 1, 2, 3)),
        ("all", (0, 1, 2, 3)),
        ("none", ()),
        ("0-2", (0, 1, 2)),
        ("0,3", (0, 3)),
    ],
)
def test_gpu_lists(text: str, indices: tuple[int, ...]) -> None:
    assert config.gpu_indices(text, 4) == indices


@pytest.mark.parametrize("text", ["0-", "-1", "a", "0 1", "1-0", "99999"])
def test_gpu_lists_that_are_none(text: str) -> None:
    with pytest.raises(BadRequest):
        config.gpu_indices(text, 4)


@pytest.mark.parametrize(
    ("text", "name"),
    [("StateSvc", "statesvc"), ("GATEWAY", "gateway"), ("NodeAgent", "nodeagent"),
     ("agent", "nodeagent"), ("node_agent", "nodeagent"), ("scheduler", "scheduler")],
)  # fmt: skip
def test_service_names(text: str, name: str) -> None:
    assert config.service_name(text) == name
