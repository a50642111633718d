"""Who calls, and what they may do: keys, tokens of an identity provider, roles, and one table.

Must never log, keep or return a credential; it is compared as a hash and forgotten.
"""

from inferx.auth.policy import ACTIONS, Place, allowed, require
from inferx.auth.principal import (
    ANONYMOUS,
    LOCAL,
    Grant,
    Principal,
    Role,
    Scope,
    call_grants,
)

__all__ = [
    "ACTIONS",
    "ANONYMOUS",
    "LOCAL",
    "Grant",
    "Place",
    "Principal",
    "Role",
    "Scope",
    "allowed",
    "call_grants",
    "require",
]
