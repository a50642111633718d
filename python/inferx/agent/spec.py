"""What a pod is asked to run: the function spec and the allocation, read from the request's JSON.

Must never start anything or read the machine; it only turns JSON into checked values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferx.domain.cluster import Alloc, read_alloc
from inferx.domain.codec import parse_json
from inferx.domain.function import FunctionSpec, SampleQuery, read_function
from inferx.domain.reader import Fields
from inferx.errors import BadRequest

POD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Fields of sample queries that are text even when it looks like a number.
TEXT_FIELDS = frozenset({"model", "prompt", "input", "content", "text", "user", "voice", "stop"})
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True)
class PodKey:
    """Whose pod it is; `id` alone is unique on the node."""

    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str

    def same_function(self, other: PodKey) -> bool:
        """Whether both name one function (the revision is not compared)."""
        mine = (self.tenant, self.namespace, self.funcname)
        return mine == (other.tenant, other.namespace, other.funcname)


def parse_alloc(text: str) -> Alloc:
    """The allocation of a request; raises BadRequest naming the entry that is wrong."""
    alloc = read_alloc(_fields(text, "alloc_resources"))
    devices = devices_of(alloc)
    if len(set(devices)) != len(devices):
        raise BadRequest(f"alloc_resources.GPU.devices: {list(devices)} names a device twice")
    return alloc


def devices_of(alloc: Alloc) -> tuple[int, ...]:
    """The GPU numbers of an allocation."""
    return alloc.gpu.devices if alloc.gpu is not None else ()


def parse_launch(text: str) -> FunctionSpec:
    """The function spec of a request; raises BadRequest naming the entry that is wrong."""
    spec = read_function(Fields({"spec": parse_json(text)}, "", []))
    if spec.endpoint.probe_type == "Prompt" and not sample_of(spec).path:
        raise BadRequest("spec.sample_query.path: needed by endpoint.probetype Prompt")
    return spec


def sample_of(spec: FunctionSpec) -> SampleQuery:
    """The function's sample query, or an empty one with the default loading time."""
    return spec.sample_query or SampleQuery()


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value, Kubernetes style: unknown names stay, `$$` gives `$`."""

    def value_of(found: re.Match[str]) -> str:
        if found.group(0) == "$$":
            return "$"
        return values.get(found.group(1), found.group(0))

    return _REFERENCE.sub(value_of, text)


def coerce(value: Any) -> Any:
    """JSON with numbers and booleans that were written as strings turned into what they mean."""
    if isinstance(value, dict):
        return {
            name: item if name in TEXT_FIELDS and isinstance(item, str) else coerce(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [coerce(item) for item in value]
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if re.fullmatch(r"-?\d{1,18}\.\d{1,18}", value):
        return float(value)
    return value


def _fields(text: str, name: str) -> Fields:
    value = parse_json(text or "{}")
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: expected an object")
    return Fields(value, name, [])
