"""Objects that the platform writes about itself: nodes, pods, snapshots, the leading scheduler.

Must never hold state; these are values that travel. Memory is MB, CPU millicores, times unix ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inferx.domain.reader import Fields


@dataclass(frozen=True)
class GpuDevice:
    """One GPU of a node."""

    index: int
    type: str
    vram_mb: int

    def to_raw(self) -> dict[str, Any]:
        """The device as JSON."""
        return {"index": self.index, "type": self.type, "vram_mb": self.vram_mb}


@dataclass(frozen=True)
class NodeResources:
    """Everything a node has; `context_overhead_mb` is per GPU context."""

    cpu_millis: int = 0
    mem_mb: int = 0
    cache_mem_mb: int = 0
    gpus: tuple[GpuDevice, ...] = ()
    context_overhead_mb: int = 0
    max_context_per_gpu: int = 1
    max_pods: int = 0  # running and parked ones; 0 = no limit


@dataclass(frozen=True)
class Node:
    """A node as its agent reports it. `vram_used_mb` is what its ledger counts, GPU by GPU."""

    address: str
    podmgr_port: int
    state_port: int
    runtime: str = "process"
    boot_id: str = ""
    resources: NodeResources = field(default_factory=NodeResources)
    state: str = "Ready"
    reason: str = ""
    vram_used_mb: tuple[int, ...] = ()
    keeps_snapshots: bool = False

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of a node object."""
        resources = self.resources
        return {
            "spec": {
                "address": self.address,
                "podmgr_port": self.podmgr_port,
                "state_port": self.state_port,
                "runtime": self.runtime,
                "boot_id": self.boot_id,
                "snapshots": self.keeps_snapshots,
                "resources": {
                    "CPU": resources.cpu_millis,
                    "Mem": resources.mem_mb,
                    "CacheMem": resources.cache_mem_mb,
                    "GPUs": [gpu.to_raw() for gpu in resources.gpus],
                    "ContextOverhead": resources.context_overhead_mb,
                    "MaxContextPerGPU": resources.max_context_per_gpu,
                    "MaxPods": resources.max_pods,
                },
            },
            "status": {
                "state": self.state,
                "reason": self.reason,
                "vram_used_mb": list(self.vram_used_mb),
            },
        }


@dataclass(frozen=True)
class GpuAlloc:
    """GPUs given to a pod; memory is per GPU, `devices` are indices on its node."""

    type: str
    vram_mb: int
    context_overhead_mb: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Alloc:
    """Resources given to a pod."""

    cpu_millis: int = 0
    mem_mb: int = 0
    cache_mem_mb: int = 0
    gpu: GpuAlloc | None = None

    @property
    def vram_mb_per_device(self) -> int:
        """VRAM that the pod takes on each of its devices."""
        return 0 if self.gpu is None else self.gpu.vram_mb + self.gpu.context_overhead_mb

    def to_raw(self) -> dict[str, Any]:
        """The JSON of `alloc_resources`."""
        raw: dict[str, Any] = {
            "CPU": self.cpu_millis,
            "Mem": self.mem_mb,
            "CacheMem": self.cache_mem_mb,
        }
        if self.gpu is not None:
            raw["GPU"] = {
                "Type": self.gpu.type,
                "vRam": self.gpu.vram_mb,
                "contextOverhead": self.gpu.context_overhead_mb,
                "devices": list(self.gpu.devices),
            }
        return raw


@dataclass(frozen=True)
class PodStatus:
    """What a pod is doing; `since_ms` is unix time in milliseconds."""

    state: str = "Init"
    reason: str = ""
    since_ms: int = 0
    ip: str = ""
    port: int = 0
    gpus: tuple[int, ...] = ()
    vram_mb: int = 0
    start: str = "cold"
    restarts: int = 0
    error: str | None = None

    def to_raw(self) -> dict[str, Any]:
        """The status as JSON."""
        return {
            "state": self.state,
            "reason": self.reason,
            "since_ms": self.since_ms,
            "ip": self.ip,
            "port": self.port,
            "gpus": list(self.gpus),
            "vram_mb": self.vram_mb,
            "start": self.start,
            "restarts": self.restarts,
            "error": self.error,
        }


@dataclass(frozen=True)
class Pod:
    """One worker of a function on a node."""

    funcname: str
    fprevision: int
    node: str
    alloc: Alloc = field(default_factory=Alloc)
    status: PodStatus = field(default_factory=PodStatus)

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of a pod object."""
        return {
            "spec": {
                "funcname": self.funcname,
                "fprevision": self.fprevision,
                "node": self.node,
                "alloc_resources": self.alloc.to_raw(),
            },
            "status": self.status.to_raw(),
        }


@dataclass(frozen=True)
class Snapshot:
    """A stored worker of one function revision on a node, or why there is none.

    `state` is Ready, Failed or Cannot where the agent shows it, and the state of the scheduler's
    task (Init, Scheduled, Done, ScheduleFail, Waiting, Cannot) in the store.
    """

    funcname: str
    fprevision: int
    node: str
    state: str = ""
    size_mb: int = 0
    restores: int = 0
    failures: int = 0  # restores since the last good one, or attempts to save, that failed
    reason: str = ""
    tier: str = "file"  # where its bytes are: host (memory) or file

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of a snapshot object."""
        return {
            "spec": {
                "funcname": self.funcname,
                "fprevision": self.fprevision,
                "node": self.node,
            },
            "status": {
                "state": self.state,
                "size_mb": self.size_mb,
                "restores": self.restores,
                "failures": self.failures,
                "reason": self.reason,
                "tier": self.tier,
            },
        }


@dataclass(frozen=True)
class SchedulerRecord:
    """The leading scheduler; the object's revision is its epoch. `instance` names the process."""

    address: str = ""
    instance: str = ""

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of a scheduler object."""
        return {"spec": {"address": self.address, "instance": self.instance}}


@dataclass(frozen=True)
class Gateway:
    """A living gateway, which may hold leases; `gateway_id` is what schedulers know it by."""

    gateway_id: int
    address: str = ""

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of a gateway object."""
        # A decimal text: ids have 63 bits, more than every reader of JSON keeps.
        return {"spec": {"gateway_id": str(self.gateway_id), "address": self.address}}


def read_node(fields: Fields) -> Node:
    """A node from its `object` member."""
    spec, status = fields.need("spec"), fields.child("status")
    fields.finish()
    node = Node(
        address=spec.string("address"),
        podmgr_port=spec.integer("podmgr_port", low=1, high=65535),
        state_port=spec.integer("state_port", low=1, high=65535),
        runtime=spec.string("runtime", "process"),
        boot_id=spec.string("boot_id", ""),
        keeps_snapshots=spec.boolean("snapshots", False),
        resources=_read_node_resources(spec.child("resources")),
        state="Ready" if status is None else status.string("state", "Ready"),
        reason="" if status is None else status.string("reason", ""),
        vram_used_mb=() if status is None else status.integers("vram_used_mb"),
    )
    spec.finish()
    return node


def _read_node_resources(fields: Fields | None) -> NodeResources:
    if fields is None:
        return NodeResources()
    return NodeResources(
        cpu_millis=fields.integer("CPU", 0, unit="millicores"),
        mem_mb=fields.integer("Mem", 0, unit="MB"),
        cache_mem_mb=fields.integer("CacheMem", 0, unit="MB"),
        gpus=tuple(
            GpuDevice(gpu.integer("index"), gpu.string("type"), gpu.integer("vram_mb", unit="MB"))
            for gpu in fields.children("GPUs")
        ),
        context_overhead_mb=fields.integer("ContextOverhead", 0, unit="MB"),
        max_context_per_gpu=fields.integer("MaxContextPerGPU", 1, low=1),
        max_pods=fields.integer("MaxPods", 0),
    )


def read_alloc(fields: Fields | None) -> Alloc:
    """`alloc_resources`."""
    if fields is None:
        return Alloc()
    gpu = fields.child("GPU")
    return Alloc(
        cpu_millis=fields.integer("CPU", 0, unit="millicores"),
        mem_mb=fields.integer("Mem", 0, unit="MB"),
        cache_mem_mb=fields.integer("CacheMem", 0, unit="MB"),
        gpu=None
        if gpu is None
        else GpuAlloc(
            type=gpu.string("Type", "Any"),
            vram_mb=gpu.integer("vRam", unit="MB"),
            context_overhead_mb=gpu.integer("contextOverhead", 0, unit="MB"),
            devices=gpu.integers("devices"),
        ),
    )


def read_pod(fields: Fields) -> Pod:
    """A pod from its `object` member."""
    spec, status = fields.need("spec"), fields.child("status")
    fields.finish()
    pod = Pod(
        funcname=spec.string("funcname"),
        fprevision=spec.integer("fprevision"),
        node=spec.string("node", ""),
        alloc=read_alloc(spec.child("alloc_resources")),
        status=PodStatus() if status is None else _read_pod_status(status),
    )
    spec.finish()
    return pod


def _read_pod_status(fields: Fields) -> PodStatus:
    return PodStatus(
        state=fields.string("state", "Init"),
        reason=fields.string("reason", ""),
        since_ms=fields.integer("since_ms", 0, unit="milliseconds"),
        ip=fields.string("ip", ""),
        port=fields.integer("port", 0, high=65535),
        gpus=fields.integers("gpus"),
        vram_mb=fields.integer("vram_mb", 0, unit="MB"),
        start=fields.string("start", "cold"),
        restarts=fields.integer("restarts", 0),
        error=fields.string("error") if fields.has("error") else None,
    )


def read_snapshot(fields: Fields) -> Snapshot:
    """A snapshot from its `object` member."""
    spec, status = fields.need("spec"), fields.child("status")
    fields.finish()
    return Snapshot(
        funcname=spec.string("funcname"),
        fprevision=spec.integer("fprevision"),
        node=spec.string("node", ""),
        **({} if status is None else _read_snapshot_status(status)),
    )


def _read_snapshot_status(fields: Fields) -> dict[str, Any]:
    return {
        "state": fields.string("state", ""),
        "size_mb": fields.integer("size_mb", 0, unit="MB"),
        "restores": fields.integer("restores", 0),
        "failures": fields.integer("failures", 0),
        "reason": fields.string("reason", ""),
        "tier": fields.string("tier", "file"),
    }


def read_scheduler(fields: Fields) -> SchedulerRecord:
    """The scheduler record from its `object` member."""
    spec = fields.child("spec")
    if spec is None:
        return SchedulerRecord()
    return SchedulerRecord(spec.string("address", ""), spec.string("instance", ""))


def read_gateway(fields: Fields) -> Gateway:
    """A gateway from its `object` member."""
    spec = fields.need("spec")
    fields.finish()
    gateway_id, address = spec.string("gateway_id"), spec.string("address", "")
    if not gateway_id.isdecimal() or len(gateway_id) > 19:
        spec.fail("gateway_id", f"expected a decimal number, got {gateway_id!r}")
    gateway = Gateway(int(gateway_id), address)
    spec.finish()
    return gateway
