"""The one table of who may do what. What is not in it is refused.

Must never look anything up: the answer depends on the caller, the action and the place only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from inferx.auth.principal import Grant, Principal, Role, Scope
from inferx.errors import Forbidden, Unauthenticated


class Level(Enum):
    """How far a caller's role has to reach."""

    NAMESPACE = "namespace"
    TENANT = "tenant"
    PLATFORM = "platform"
    WITHIN = "anything in it"
    """A role somewhere in the place; the answer is filtered to what the caller may see."""


@dataclass(frozen=True)
class Place:
    """Where an action happens; "" = all tenants, all namespaces. `title` words the refusal."""

    tenant: str = ""
    namespace: str = ""
    title: str = ""

    def __str__(self) -> str:
        return self.title or "/".join(filter(None, (self.tenant, self.namespace))) or "the platform"


@dataclass(frozen=True)
class Rule:
    """The least that an action asks of a caller."""

    scope: Scope
    role: Role
    level: Level


_USER, _ADMIN = Role.USER, Role.ADMIN
_READ, _FULL, _INFERENCE = Scope.READ, Scope.FULL, Scope.INFERENCE

ACTIONS: dict[str, Rule] = {
    "function.call": Rule(_INFERENCE, _USER, Level.NAMESPACE),
    "pod.call": Rule(_FULL, _ADMIN, Level.NAMESPACE),
    "model.list": Rule(_INFERENCE, _USER, Level.WITHIN),
    "login.see": Rule(_INFERENCE, _USER, Level.WITHIN),
    "dashboard.see": Rule(_INFERENCE, _USER, Level.WITHIN),
    "whoami": Rule(_INFERENCE, _USER, Level.WITHIN),
    "object.list": Rule(_READ, _USER, Level.WITHIN),
    "function.read": Rule(_READ, _USER, Level.NAMESPACE),
    "funcpolicy.read": Rule(_READ, _USER, Level.NAMESPACE),
    "namespace.read": Rule(_READ, _USER, Level.NAMESPACE),
    "tenant.read": Rule(_READ, _USER, Level.WITHIN),
    "pod.read": Rule(_READ, _USER, Level.NAMESPACE),
    "snapshot.read": Rule(_READ, _USER, Level.NAMESPACE),
    "node.read": Rule(_READ, _ADMIN, Level.PLATFORM),
    "scheduler.read": Rule(_READ, _ADMIN, Level.PLATFORM),
    "metrics.read": Rule(_READ, _ADMIN, Level.PLATFORM),
    "function.write": Rule(_FULL, _ADMIN, Level.NAMESPACE),
    "function.mount": Rule(_FULL, _ADMIN, Level.PLATFORM),
    "funcpolicy.write": Rule(_FULL, _ADMIN, Level.NAMESPACE),
    "namespace.write": Rule(_FULL, _ADMIN, Level.TENANT),
    "tenant.write": Rule(_FULL, _ADMIN, Level.PLATFORM),
    "pod.kill": Rule(_FULL, _ADMIN, Level.NAMESPACE),
    "log.read": Rule(_READ, _USER, Level.NAMESPACE),
    "audit.read": Rule(_READ, _ADMIN, Level.NAMESPACE),
    "key.create": Rule(_FULL, _USER, Level.NAMESPACE),
    "key.list": Rule(_READ, _USER, Level.WITHIN),
    "key.revoke": Rule(_FULL, _USER, Level.WITHIN),
    "key.manage": Rule(_FULL, _ADMIN, Level.NAMESPACE),
    "key.see": Rule(_READ, _ADMIN, Level.NAMESPACE),
}
"""Every action there is; `TYPE.read` and `TYPE.write` are of objects of that type."""


def allowed(principal: Principal, action: str, place: Place) -> bool:
    """Whether the caller may do it there."""
    rule = ACTIONS.get(action)
    if rule is None or principal.scope < rule.scope:
        return False
    return any(
        grant.role >= rule.role and _reaches(grant, rule.level, place) for grant in principal.grants
    )


def _reaches(grant: Grant, level: Level, place: Place) -> bool:
    if level is Level.PLATFORM:
        return grant.covers("", "")
    if level is Level.TENANT:
        return grant.covers(place.tenant, "")
    if level is Level.WITHIN:
        return grant.touches(place.tenant, place.namespace)
    return grant.covers(place.tenant, place.namespace)


def require(principal: Principal, action: str, place: Place) -> None:
    """Refuse the caller unless it may do it there: `Unauthenticated` or `Forbidden`."""
    if not allowed(principal, action, place):
        _refuse(principal, action, place)


def _refuse(principal: Principal, action: str, place: Place) -> NoReturn:
    if principal.anonymous:
        raise Unauthenticated("send `Authorization: Bearer` and a key or token")
    rule = ACTIONS.get(action)
    if rule is not None and principal.scope < rule.scope:
        raise Forbidden(
            f"{principal.name} may not {action}: the credential's scope is "
            f"{principal.scope.name.lower()}, {rule.scope.name.lower()} is needed"
        )
    raise Forbidden(f"{principal.name} may not {action} in {place}")
