"""Every object kind in one place: its typed content, where it lives, and how it is read.

Must never do I/O; reading raises `BadRequest` with the JSON path of what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inferx.domain.apikey import ApiKey, read_apikey
from inferx.domain.cluster import (
    Alloc,
    Gateway,
    GpuAlloc,
    GpuDevice,
    Node,
    NodeResources,
    Pod,
    PodStatus,
    SchedulerRecord,
    Snapshot,
    read_alloc,
    read_gateway,
    read_node,
    read_pod,
    read_scheduler,
    read_snapshot,
)
from inferx.domain.function import (
    Endpoint,
    Function,
    FunctionSpec,
    GpuRequest,
    Mount,
    Resources,
    SampleQuery,
    Standby,
    read_function,
)
from inferx.domain.meta import SYSTEM
from inferx.domain.policy import FuncPolicy, PolicyRef, TenantLimit, read_limit, read_policy
from inferx.domain.reader import Fields

__all__ = [
    "KINDS",
    "Alloc",
    "ApiKey",
    "Endpoint",
    "FuncPolicy",
    "Function",
    "FunctionSpec",
    "Gateway",
    "GpuAlloc",
    "GpuDevice",
    "GpuRequest",
    "Kind",
    "Mount",
    "Namespace",
    "Node",
    "NodeResources",
    "Pod",
    "PodStatus",
    "PolicyRef",
    "Resources",
    "SampleQuery",
    "SchedulerRecord",
    "Snapshot",
    "Standby",
    "Tenant",
    "TenantLimit",
    "read_alloc",
]


@dataclass(frozen=True)
class Tenant:
    """An owner of namespaces and functions."""

    limit: TenantLimit = field(default_factory=TenantLimit)
    disable: bool = False
    public_calls: bool = False
    """Whether functions of this tenant that are marked public may be called by anybody."""


@dataclass(frozen=True)
class Namespace:
    """A group of functions of one tenant."""

    disable: bool = False


def _read_disable(fields: Fields) -> bool:
    status = fields.child("status")
    if status is None:
        return False
    disable = status.boolean("disable", False)
    status.finish()
    return disable


def _read_tenant(fields: Fields) -> Tenant:
    spec = fields.child("spec")
    limit, public_calls = TenantLimit(), False
    if spec is not None:
        limit = read_limit(spec.child("limit"))
        public_calls = spec.boolean("public_calls", False)
        spec.finish()
    tenant = Tenant(limit, _read_disable(fields), public_calls)
    fields.finish()
    return tenant


def _read_namespace(fields: Fields) -> Namespace:
    spec = fields.child("spec")
    if spec is not None:
        spec.finish()
    namespace = Namespace(disable=_read_disable(fields))
    fields.finish()
    return namespace


@dataclass(frozen=True)
class Kind:
    """How one kind is read, and the tenant and namespace its objects must live in ("" = any)."""

    name: str
    read: Callable[[Fields], Any]
    tenant: str = ""
    namespace: str = ""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("tenant", _read_tenant, SYSTEM, SYSTEM),
        Kind("namespace", _read_namespace, "", SYSTEM),
        Kind("function", read_function),
        Kind("funcpolicy", read_policy),
        Kind("node", read_node, SYSTEM, SYSTEM),
        Kind("pod", read_pod),
        Kind("snapshot", read_snapshot),
        Kind("apikey", read_apikey),
        Kind("scheduler", read_scheduler, SYSTEM, SYSTEM),
        Kind("gateway", read_gateway, SYSTEM, SYSTEM),
    )
}
"""Every known kind; anything else is refused."""
