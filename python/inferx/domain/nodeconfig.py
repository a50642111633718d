"""What a node's configuration consists of, and how its entries are read and checked.

Must never look at the environment (`inferx.config` does) nor show a secret.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from inferx.domain.accessconfig import (
    AuthConfig,
    KeycloakConfig,
    Secret,
    ServiceTls,
    read_auth,
    read_keycloak,
    read_service_tls,
)
from inferx.domain.addresses import address, addresses, redact, several
from inferx.domain.meta import check_name
from inferx.domain.noderuntime import POD_CIDR, container_socket, pod_cidr
from inferx.domain.reader import COUNT_MAX, Fields
from inferx.errors import BadRequest

_T = TypeVar("_T")
LISTENERS = ("rust", "granian")
RUNTIMES = ("process", "runc", "containerd", "docker")

# Entries of older configurations that nothing here needs.
_RETIRED = (
    "tsotCniPort", "tsotSvcPort", "cidr", "tsotSocketPath", "tsotGwSocketPath", "runService",
    "billingdbAddr", "secretStoreAddr",
)  # fmt: skip


@dataclass(frozen=True)
class NodeResourcesConfig:
    """What the platform may use of this node; `gpus` is Auto, all, none or a list like 0-3,5."""

    cpu_millis: int
    mem_mb: int
    gpus: str = "Auto"
    context_overhead_mb: int = 450
    max_context_per_gpu: int = 1
    max_pods: int = 0  # running and parked ones; 0 = no limit


@dataclass(frozen=True)
class SimulatedGpu:
    """`count` software devices of one type, for machines without a GPU."""

    type: str
    count: int
    vram_mb: int


@dataclass(frozen=True)
class TlsConfig:
    """Certificate of the gateway."""

    enable: bool = False
    cert: str = ""
    key: str = ""


@dataclass(frozen=True)
class BlobConfig:
    """Where snapshots of the Blob tier live."""

    enable: bool = False
    type: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ShareMemConfig:
    """The pinned host memory of the Mem tier."""

    size_gb: int = 0
    size_mb: int = 0  # instead, for small machines
    hugepage: bool = False

    @property
    def pool_mb(self) -> int:
        """What is to be pinned when the agent starts."""
        return self.size_mb or self.size_gb * 1024


@dataclass(frozen=True)
class EtcdConfig:
    """How to reach etcd besides its addresses; `prefix` keeps several platforms apart in one."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    username: str = ""
    password: Secret = field(default_factory=Secret)
    prefix: str = ""


@dataclass(frozen=True)
class NodeConfig:
    """One node's configuration. Without `etcd_addrs` the embedded store in `data_dir` is used.

    `metrics_port` is that of probes and metrics, 0 for none.
    """

    node_name: str
    resources: NodeResourcesConfig
    scheduler_addr: str
    data_dir: Path
    snapshot_dir: Path
    run_service: str = ""
    etcd_addrs: tuple[str, ...] = ()
    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    host_ip: str = "127.0.0.1"
    podmgr_port: int = 1233
    agent_state_port: int = 1236
    statesvc_port: int = 1237
    scheduler_port: int = 1238
    gateway_port: int = 4000
    metrics_port: int = 0
    state_svc_addrs: tuple[str, ...] = ("127.0.0.1:1237",)
    leader_lease_ms: int = 1500
    advertised_addr: str = ""
    crash_after_writes: int = 0  # for tests: see store/crashpoint.py
    listen_fd: int = 0  # the gateway's socket, when its supervisor keeps it; 0 = none
    stopping_fd: int = 0  # where the gateway tells its supervisor that it stops; 0 = nowhere
    auditdb_addr: Secret = field(default_factory=Secret)
    simulated_gpus: tuple[SimulatedGpu, ...] = ()
    listener: str = "rust"
    runtime: str = "process"
    container_network: str = ""  # of the Docker Engine, for workers; "" = its default bridge
    container_socket: Path | None = None  # of the Docker Engine; None = where it usually is
    snapshot_budget_mb: int = 0  # 0 = as much as the disk holds
    pod_cidr: str = POD_CIDR  # containers' addresses; seen on this node only
    log_format: str = "text"
    log_level: str = "info"
    idle_park_ms: int | None = None  # None: the keep-alive policy decides for each function
    blob: BlobConfig = field(default_factory=BlobConfig)
    keycloak: KeycloakConfig = field(default_factory=KeycloakConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    service_tls: ServiceTls = field(default_factory=ServiceTls)
    mount_roots: tuple[str, ...] = ()
    """Folders of the nodes that tenants may mount; who manages the platform may mount all."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    sharemem: ShareMemConfig = field(default_factory=ShareMemConfig)
    admin_apikey: Secret = field(default_factory=Secret)
    warnings: tuple[str, ...] = ()


def _advertised(fields: Fields) -> str:
    """Where others reach the scheduler, when not at hostIp and its port (a port mapping)."""
    text = fields.string("advertisedAddr", "")
    return address(text, "advertisedAddr") if text else ""


def read_config(document: dict[str, Any]) -> NodeConfig:
    """The configuration in `document`; `BadRequest` names a wrong entry."""
    warnings: list[str] = []
    fields = Fields(document, "", warnings)
    for name in _RETIRED:
        fields.take(name)
    host_ip = _host_ip(fields)
    port = _ports(fields)
    data_dir = _folder(fields, "dataDir", Path(".inferx"))
    config = NodeConfig(
        node_name=check_name(fields.string("nodeName", "node1"), "nodeName"),
        run_service=fields.string("runService_", ""),
        etcd_addrs=addresses(fields, "etcdAddrs"),
        etcd=_section(fields, "etcdconfig", _read_etcd, EtcdConfig()),
        host_ip=host_ip,
        podmgr_port=port["podMgrPort"],
        agent_state_port=port["qletStateSvcPort"],
        statesvc_port=port["statSvcPort"],
        scheduler_port=port["schedulerPort"],
        gateway_port=port["gatewayPort"],
        metrics_port=fields.integer("metricsPort", 0, high=65535),
        state_svc_addrs=several(fields, "stateSvcAddrs") or (f"127.0.0.1:{port['statSvcPort']}",),
        crash_after_writes=fields.integer("crashAfterWrites_", 0),
        listen_fd=fields.integer("listenFd_", 0),
        stopping_fd=fields.integer("stoppingFd_", 0),
        advertised_addr=_advertised(fields),
        leader_lease_ms=fields.integer(
            "leaderLeaseMs", 1500, low=1000, high=60_000, unit="milliseconds"
        ),
        scheduler_addr=address(
            fields.string("schedulerAddr", f"127.0.0.1:{port['schedulerPort']}"), "schedulerAddr"
        ),
        auditdb_addr=Secret(fields.string("auditdbAddr", "")),
        resources=_section(
            fields, "resources", _read_resources, _read_resources(Fields({}, "", []))
        ),
        simulated_gpus=_read_simulated(fields),
        snapshot_dir=_folder(fields, "snapshotDir", data_dir / "snapshots"),
        data_dir=data_dir,
        listener=fields.choice("listener", LISTENERS, "rust"),
        runtime=fields.choice("runtime", RUNTIMES, "process"),
        snapshot_budget_mb=fields.integer("snapshotBudgetMB", 0, unit="MB"),
        pod_cidr=pod_cidr(fields),
        container_network=fields.string("containerNetwork", ""),
        container_socket=container_socket(fields),
        log_format=fields.choice("logFormat", ("json", "text"), "text"),
        log_level=fields.choice("logLevel", ("debug", "info", "warning", "error"), "info"),
        idle_park_ms=fields.optional_integer("idleParkMs", unit="milliseconds"),
        blob=BlobConfig(
            enable=fields.boolean("enableBlobStore", False),
            type=fields.choice("blobStoreType", ("", "s3", "nfs"), ""),
            options=fields.mapping("blobStoreConfig"),
        ),
        keycloak=_section(fields, "keycloakconfig", read_keycloak, KeycloakConfig()),
        auth=read_auth(fields, host_ip),
        service_tls=_section(fields, "servicetls", read_service_tls, ServiceTls()),
        mount_roots=tuple(fields.strings("mountRoots")),
        tls=_section(fields, "tlsconfig", _read_tls, TlsConfig()),
        sharemem=_section(fields, "sharemem", _read_sharemem, ShareMemConfig()),
        admin_apikey=Secret(fields.string("adminApikey_", "")),
    )
    fields.finish()
    return replace(config, warnings=tuple(redact(warning) for warning in warnings))


def _ports(fields: Fields) -> dict[str, int]:
    defaults = {
        "podMgrPort": 1233,
        "qletStateSvcPort": 1236,
        "statSvcPort": 1237,
        "schedulerPort": 1238,
        "gatewayPort": 4000,
    }
    return {name: fields.integer(name, port, low=1, high=65535) for name, port in defaults.items()}


def _folder(fields: Fields, name: str, default: Path) -> Path:
    return Path(fields.string(name, str(default))).expanduser()


def _host_ip(fields: Fields) -> str:
    """`hostIp`, or this machine's address inside `hostIpCidr`, or the loopback address."""
    cidr = fields.string("hostIpCidr", "")
    given = fields.string("hostIp", "")
    if given:
        try:
            return str(ipaddress.ip_address(given))
        except ValueError:
            fields.fail("hostIp", f"{given!r} is not an IP address")
    if not cidr:
        return "127.0.0.1"
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        fields.fail("hostIpCidr", f"{cidr!r} is not a network like 192.168.0.0/16")
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:  # connecting a datagram socket sends nothing; it only asks for the route
            probe.connect((str(network.network_address + 1), 9))
            local = str(probe.getsockname()[0])
        except OSError:
            local = ""
    if not local or ipaddress.ip_address(local) not in network:
        fields.warnings.append(
            f"hostIpCidr: this machine has no address in {cidr}; using 127.0.0.1"
        )
        return "127.0.0.1"
    return local


def _section(fields: Fields, name: str, read: Callable[[Fields], _T], default: _T) -> _T:
    section = fields.child(name)
    if section is None:
        return default
    value = read(section)
    section.finish()
    return value


def _read_etcd(fields: Fields) -> EtcdConfig:
    return EtcdConfig(
        ca=fields.string("ca", ""),
        cert=fields.string("cert", ""),
        key=fields.string("key", ""),
        username=fields.string("username", ""),
        password=Secret(fields.string("password", "")),
        prefix=fields.string("prefix", ""),
    )


def _read_tls(fields: Fields) -> TlsConfig:
    return TlsConfig(
        enable=fields.boolean("enable", False),
        cert=fields.string("cert", ""),
        key=fields.string("key", ""),
    )


def _read_sharemem(fields: Fields) -> ShareMemConfig:
    return ShareMemConfig(
        size_gb=fields.integer("size", 0, unit="GB"),
        size_mb=fields.integer("sizeMB", 0, unit="MB"),
        hugepage=fields.boolean("hugepage", False),
    )


def _read_resources(fields: Fields) -> NodeResourcesConfig:
    page_bytes, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    gpus = fields.string("GPUs", "Auto")
    try:
        gpu_indices(gpus, 0)
    except BadRequest as error:
        fields.fail("GPUs", error.message)
    return NodeResourcesConfig(
        cpu_millis=fields.integer("CPU", (os.cpu_count() or 1) * 1000, unit="millicores"),
        mem_mb=fields.integer("Mem", page_bytes * pages >> 20, unit="MB"),
        gpus=gpus,
        context_overhead_mb=fields.integer("ContextOverhead", 450, unit="MB"),
        max_context_per_gpu=fields.integer("MaxContextPerGPU", 1, low=1, high=COUNT_MAX),
        max_pods=fields.integer("MaxPods", 0, high=COUNT_MAX),
    )


def _read_simulated(fields: Fields) -> tuple[SimulatedGpu, ...]:
    """`simulatedGPUs`: one entry {type, count, vramMB} or a list of them."""
    value = fields.take("simulatedGPUs")
    entries = [value] if isinstance(value, dict) else value or []
    found = []
    for entry in Fields({"simulatedGPUs": entries}, "", fields.warnings).children("simulatedGPUs"):
        found.append(
            SimulatedGpu(
                type=entry.string("type", "Simulated"),
                count=entry.integer("count", 1, low=1, high=1024),
                vram_mb=entry.integer("vramMB", unit="MB", low=1),
            )
        )
        entry.finish()
    return tuple(found)


def gpu_indices(text: str, present: int) -> tuple[int, ...]:
    """The GPUs meant by Auto, all, none or a list like `0-3,5`, on a node with `present` GPUs.

    Raises `BadRequest` when the text is none of these.
    """
    if text.lower() in ("auto", "all"):
        return tuple(range(present))
    if text.lower() in ("", "none"):
        return ()
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise BadRequest(f"expected Auto, all, none or a list like 0-3,5, got {text!r}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))
