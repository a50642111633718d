"""Objects as facts for the core.

Must never look anything up beyond what it is given.
"""

from __future__ import annotations

from typing import Any

from inferx.domain.meta import Object
from inferx.domain.objects import (
    FuncPolicy,
    FunctionSpec,
    Namespace,
    Node,
    Pod,
    Snapshot,
    Tenant,
)

# What an agent shows of a snapshot, in the words of the scheduler's tasks.
_TASK_STATES = {"Ready": "Done", "Failed": "ScheduleFail", "Cannot": "Cannot"}


def function_fact(obj: Object[FunctionSpec], policy: FuncPolicy) -> dict[str, Any]:
    """A function in the revision of `obj` under the policy in force."""
    tenant, namespace, name = obj.key
    resources = obj.spec.resources
    fact: dict[str, Any] = {
        "kind": "function",
        "tenant": tenant,
        "namespace": namespace,
        "name": name,
        "revision": obj.revision,
        "cpu_millis": resources.cpu_millis,
        "mem_mib": resources.mem_mb,
        "cache_mib": resources.cache_mem_mb,
        "standby_mem_mib": resources.ready_mem_mb,
        "standby_image_in_memory": obj.spec.standby.gpu == "Mem",
        "min_replica": policy.min_replica,
        "max_replica": policy.max_replica,
        "standby_per_node": policy.standby_per_node,
        "parallel": policy.parallel,
        "queue_len": policy.queue_len,
        "queue_timeout_ms": policy.queue_timeout_ms,
        "wait_ratio_milli": round(policy.wait_ratio * 1000),
    }
    if resources.gpu is not None:
        fact |= {
            "gpu_type": resources.gpu.type,
            "gpu_count": resources.gpu.count,
            "vram_mib": resources.gpu.vram_mb,
            "contexts": resources.gpu.context_count,
        }
    return fact


def function_gone(obj: Object[FunctionSpec]) -> dict[str, Any]:
    """A function was deleted."""
    tenant, namespace, name = obj.key
    return {"kind": "function_gone", "tenant": tenant, "namespace": namespace, "name": name}


def tenant_fact(obj: Object[Tenant], gone: bool = False) -> dict[str, Any]:
    """The limits of a tenant; none once its object is gone."""
    if gone:
        return {"kind": "tenant", "name": obj.meta.name}
    limit = obj.spec.limit
    return {
        "kind": "tenant",
        "name": obj.meta.name,
        "disabled": obj.spec.disable,
        "allow_standby": limit.allow_mem_standby,
        "max_replica": limit.max_replica,
        "min_replica_cap": limit.min_replica_cap,
        "max_standby": limit.max_standby,
        "max_gpu_milli": None if limit.max_gpu is None else limit.max_gpu * 1000,
        "max_queue_len": limit.max_queue_len,
        "priority": limit.priority,
        "weight": limit.weight,
    }


def namespace_fact(obj: Object[Namespace], gone: bool = False) -> dict[str, Any]:
    """Whether a namespace is disabled."""
    return {
        "kind": "namespace",
        "tenant": obj.meta.tenant,
        "name": obj.meta.name,
        "disabled": obj.spec.disable and not gone,
    }


def node_fact(name: str, node: Node, ready: bool) -> dict[str, Any]:
    """What a node has; `ready` says whether its agent can be reached."""
    resources = node.resources
    return {
        "kind": "node",
        "name": name,
        "boot_id": node.boot_id,
        "ready": ready and node.state == "Ready",
        "keeps_snapshots": node.keeps_snapshots,
        "cpu_millis": resources.cpu_millis,
        "mem_mib": resources.mem_mb,
        "cache_mib": resources.cache_mem_mb,
        "gpus": [(gpu.index, gpu.type, gpu.vram_mb) for gpu in resources.gpus],
        "context_overhead_mib": resources.context_overhead_mb,
        "contexts_per_gpu_max": resources.max_context_per_gpu,
        "pods_max": resources.max_pods,
    }


def snapshot_fact(node: str, obj: Object[Snapshot], gone: bool = False) -> dict[str, Any]:
    """What the agent of `node` shows of a function's snapshot, or that it shows nothing more."""
    tenant, namespace, _ = obj.key
    snapshot = obj.spec
    fact: dict[str, Any] = {
        "kind": "snapshot_gone" if gone else "snapshot",
        "node": node,
        "tenant": tenant,
        "namespace": namespace,
        "name": snapshot.funcname,
    }
    if not gone:
        fact |= {
            "revision": snapshot.fprevision,
            "state": _TASK_STATES.get(snapshot.state, "ScheduleFail"),
            "tier": snapshot.tier,
            "size_mib": snapshot.size_mb,
            "failures": snapshot.failures if snapshot.state == "Failed" else 0,
            "reason": snapshot.reason,
        }
    return fact


def pod_fact(node: str, obj: Object[Pod]) -> dict[str, Any]:
    """A pod as the agent of `node` shows it."""
    pod, alloc = obj.spec, obj.spec.alloc
    # A parked pod holds no GPU, whatever it was given while it ran.
    gpu = None if pod.status.state == "Standby" else alloc.gpu
    return {
        "kind": "pod",
        "pod_id": obj.meta.name,
        "node": node,
        "tenant": obj.meta.tenant,
        "namespace": obj.meta.namespace,
        "name": pod.funcname,
        "revision": pod.fprevision,
        "state": pod.status.state,
        "reason": pod.status.error or pod.status.reason,
        "cpu_millis": 0 if pod.status.state == "Standby" else alloc.cpu_millis,
        "mem_mib": alloc.mem_mb,
        "cache_mib": alloc.cache_mem_mb,
        "devices": [] if gpu is None else list(gpu.devices),
        "gpu_mib": 0 if gpu is None else gpu.vram_mb + gpu.context_overhead_mb,
    }
