"""The object of an API key: what it allows, and a keyed hash of it.

Must never hold the key itself; who mints it sees it once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from inferx.domain.reader import Fields

SCOPES = ("inference", "read", "full")
ROLES = ("user", "admin")
DIGEST = re.compile(r"[0-9a-f]{64}")
KEY_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class ApiKey:
    """A key's rights; it is restricted to the tenant and namespace that its object lives in.

    Times are unix milliseconds, 0 = never. `parent` is the key that minted it, "" for none: the
    end of a key is the end of those that it minted.
    """

    digest: str
    scope: str
    role: str
    created_ms: int
    created_by: str
    expires_ms: int = 0
    last_used_ms: int = 0
    parent: str = ""
    note: str = ""

    def to_raw(self) -> dict[str, Any]:
        """The `object` member of the key's object."""
        return {
            "spec": {
                "digest": self.digest,
                "scope": self.scope,
                "role": self.role,
                "created_ms": self.created_ms,
                "created_by": self.created_by,
                "expires_ms": self.expires_ms,
                "parent": self.parent,
                "note": self.note,
            },
            "status": {"last_used_ms": self.last_used_ms},
        }


def read_apikey(fields: Fields) -> ApiKey:
    """A key from the `object` member of its object."""
    spec = fields.need("spec")
    status = fields.child("status")
    digest, parent = spec.string("digest"), spec.string("parent", "")
    if DIGEST.fullmatch(digest) is None:
        spec.fail("digest", "expected 64 hexadecimal digits")
    if parent and KEY_ID.fullmatch(parent) is None:
        spec.fail("parent", "expected the id of a key")
    key = ApiKey(
        digest=digest,
        # The least is assumed where nothing is said.
        scope=spec.choice("scope", SCOPES, SCOPES[0]),
        role=spec.choice("role", ROLES, ROLES[0]),
        created_ms=spec.integer("created_ms", 0),
        created_by=spec.string("created_by", ""),
        expires_ms=spec.integer("expires_ms", 0),
        last_used_ms=0 if status is None else status.integer("last_used_ms", 0),
        parent=parent,
        note=spec.string("note", ""),
    )
    spec.finish()
    if status is not None:
        status.finish()
    fields.finish()
    return key
