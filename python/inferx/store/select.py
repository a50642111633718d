"""Selectors of List and Watch: by label and by field of the manifest.

Must never read anything but the manifest it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferx.errors import BadRequest

_TERM = re.compile(r"\s*(!?)\s*([^\s=!,]+)\s*(?:(==|=|!=)\s*([^\s=!,]*))?\s*")


@dataclass(frozen=True)
class _Term:
    name: str
    wanted: str | None  # None = any value, the name only has to exist
    negative: bool

    def matches(self, found: str | None) -> bool:
        hit = found is not None if self.wanted is None else found == self.wanted
        return hit is not self.negative


def _parse(text: str, what: str) -> tuple[_Term, ...]:
    terms = []
    for part in text.split(",") if text else ():
        match = _TERM.fullmatch(part)
        if match is None or (match[1] and match[3]):
            raise BadRequest(f"{what}: {part!r} is not of the form name=value, name!=value or name")
        terms.append(
            _Term(match[2], match[4] if match[3] else None, bool(match[1]) or match[3] == "!=")
        )
    return tuple(terms)


class Selector:
    """`labels` like `a=1,b!=2,c,!d`; `fields` are dotted paths like `status.state=Ready,name=x`."""

    def __init__(self, labels: str = "", fields: str = "") -> None:
        self._labels = _parse(labels, "label_selector")
        self._fields = _parse(fields, "field_selector")

    def __bool__(self) -> bool:
        return bool(self._labels or self._fields)

    def matches(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the object of this manifest is selected."""
        labels = manifest.get("labels") or {}
        return all(term.matches(labels.get(term.name)) for term in self._labels) and all(
            term.matches(_field(manifest, term.name)) for term in self._fields
        )


def _field(manifest: Mapping[str, Any], path: str) -> str | None:
    """The text of a field; paths start at the envelope or inside `object`."""
    head = path.split(".", 1)[0]
    value: Any = manifest if head in manifest else manifest.get("object")
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
