"""A caller: its name, where it has which role, and how much its credential lets it use of that.

Must never compare a name in part; a grant covers whole tenants and whole namespaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from inferx.domain.meta import check_name
from inferx.errors import BadRequest


class Scope(IntEnum):
    """What a credential may be used for; each includes those below."""

    INFERENCE = 1
    READ = 2
    FULL = 3


class Role(IntEnum):
    """What a person is somewhere; an admin is a user, too."""

    USER = 1
    ADMIN = 2


@dataclass(frozen=True)
class Grant:
    """A role in a namespace, in a whole tenant (no namespace), or everywhere (no tenant)."""

    role: Role
    tenant: str = ""
    namespace: str = ""

    def covers(self, tenant: str, namespace: str) -> bool:
        """Whether it holds in all of that place; "" stands for all tenants, all namespaces."""
        if not self.tenant:
            return True
        if self.tenant != tenant:
            return False
        return not self.namespace or self.namespace == namespace

    def touches(self, tenant: str, namespace: str) -> bool:
        """Whether it holds somewhere in that place."""
        if self.covers(tenant, namespace):
            return True
        if tenant and tenant != self.tenant:
            return False
        return not namespace or namespace == self.namespace


@dataclass(frozen=True)
class Principal:
    """A caller. `key_id` is set for API keys; `expires_ms` is unix time, 0 = never."""

    name: str
    grants: tuple[Grant, ...]
    scope: Scope
    key_id: str = ""
    expires_ms: int = 0
    anonymous: bool = False


ANONYMOUS = Principal("anonymous", (), Scope.INFERENCE, anonymous=True)
"""A caller without a credential."""

LOCAL = Principal("local", (Grant(Role.ADMIN),), Scope.FULL)
"""Everybody, on a platform that runs without authentication on the loopback."""


def parse_role(text: str) -> Grant | None:
    """A role of an identity provider as a grant; None for one that is not InferX's.

    `/platform/admin`, `/tenant/admin|user/T`, `/namespace/admin|user/T/N`; the leading slash may
    be missing, nothing else.
    """
    parts = text.removeprefix("/").split("/")
    if parts == ["platform", "admin"]:
        return Grant(Role.ADMIN)
    names = {"tenant": 1, "namespace": 2}.get(parts[0])
    if names is None or len(parts) != 2 + names or parts[1] not in ("admin", "user"):
        return None
    try:
        places = [check_name(name, "role") for name in parts[2:]]
    except BadRequest:
        return None
    return Grant(Role[parts[1].upper()], *places)


def call_grants(principal: Principal) -> list[str]:
    """Where the principal may call, as the data plane is told: "", `T` or `T/N`."""
    return sorted({"/".join(filter(None, (it.tenant, it.namespace))) for it in principal.grants})
