"""Names and envelopes shared by objects of every kind.

Must never know what a kind's `object` member contains, nor do any I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from inferx.errors import BadRequest

NAME_LEN_MAX = 253
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

SYSTEM = "system"
PUBLIC = "public"

Key = tuple[str, str, str]
"""(tenant, namespace, name): what an object is called within its kind."""


def check_name(name: object, path: str) -> str:
    """`name` when it is a legal object name, else `BadRequest` naming `path`."""
    if not isinstance(name, str):
        raise BadRequest(f"{path}: expected a name, got {type_name(name)}")
    if not name:
        raise BadRequest(f"{path}: must not be empty")
    if len(name) > NAME_LEN_MAX:
        raise BadRequest(f"{path}: longer than {NAME_LEN_MAX} characters")
    if _NAME.fullmatch(name) is None:
        raise BadRequest(
            f"{path}: {name!r} is not a legal name; it must start with a letter or digit and "
            "contain only letters, digits, '.', '_' and '-'"
        )
    return name


def type_name(value: object) -> str:
    """How JSON calls the type of `value`, for error messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, list | tuple):
        return "array"
    return type(value).__name__


@dataclass(frozen=True)
class Meta:
    """The envelope of one object; `revision` is the store revision of its last write, 0 = new."""

    kind: str
    tenant: str
    namespace: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    revision: int = 0

    @property
    def key(self) -> Key:
        """(tenant, namespace, name)."""
        return (self.tenant, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.tenant}/{self.namespace}/{self.name}"


SpecT_co = TypeVar("SpecT_co", covariant=True)


@dataclass(frozen=True)
class Object(Generic[SpecT_co]):
    """One object: envelope, typed content, and the content as it was given.

    `raw` is the `object` member unchanged, unknown fields included; `extra` holds unknown members
    of the envelope. Both travel through the store so that nothing a user wrote is lost.
    """

    meta: Meta
    spec: SpecT_co
    raw: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The object's kind, such as `function`."""
        return self.meta.kind

    @property
    def key(self) -> Key:
        """(tenant, namespace, name)."""
        return self.meta.key

    @property
    def revision(self) -> int:
        """Store revision of the last write."""
        return self.meta.revision
