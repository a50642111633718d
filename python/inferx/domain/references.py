"""Which objects an object needs, and which ones depend on it; the rules of admission.

Must never look anything up: these are questions to be answered by who holds the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferx.domain.meta import PUBLIC, SYSTEM, Key, Meta, Object
from inferx.domain.objects import FunctionSpec

SCHEDULER_KEY: Key = (SYSTEM, SYSTEM, "scheduler")
"""The record of the leading scheduler; its revision is the epoch."""


@dataclass(frozen=True)
class Parent:
    """An object that has to exist, and must not be disabled, for another to be written."""

    kind: str
    key: Key


def tenant_key(tenant: str) -> Key:
    """Where a tenant's object lives."""
    return (SYSTEM, SYSTEM, tenant)


def namespace_key(tenant: str, namespace: str) -> Key:
    """Where a namespace's object lives."""
    return (tenant, SYSTEM, namespace)


def parents(meta: Meta) -> list[Parent]:
    """What must exist before an object of this envelope may be written."""
    if meta.kind in ("tenant", "node", "scheduler", "gateway"):
        return []
    found = [Parent("tenant", tenant_key(meta.tenant))]
    if meta.kind == "namespace":
        return found
    # Every tenant's `system` namespace is implied: policies shared by all its functions live there.
    if meta.namespace != SYSTEM or meta.kind == "function":
        found.append(Parent("namespace", namespace_key(meta.tenant, meta.namespace)))
    return found


def children(kind: str, key: Key) -> list[tuple[str, str, str]]:
    """(kind, tenant, namespace) of what must be gone before the object may be deleted."""
    tenant, _, name = key
    if kind == "tenant":
        return [(child, name, "") for child in ("namespace", "function", "funcpolicy", "apikey")]
    if kind == "namespace":
        return [(child, tenant, name) for child in ("function", "funcpolicy", "apikey")]
    return []


def is_built_in(kind: str, key: Key) -> bool:
    """The tenant `system` and its namespace make themselves and cannot be deleted."""
    return kind in ("tenant", "namespace") and key == (SYSTEM, SYSTEM, SYSTEM)


def linked_policies(obj: Object[Any]) -> list[Key]:
    """Where the policy that a function links to may be; one of them has to exist."""
    spec = obj.spec
    if not isinstance(spec, FunctionSpec) or spec.policy is None or spec.policy.obj is not None:
        return []
    link = spec.policy
    tenants = dict.fromkeys((obj.meta.tenant, PUBLIC))
    return [(tenant, link.link_namespace, link.link_name) for tenant in tenants]


def may_follow(function: Object[Any], policy: Key) -> bool:
    """Whether a policy of this key could be the one in force for a function."""
    return policy == function.key or policy in linked_policies(function)
