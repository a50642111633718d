"""Which service may ask which other for what: by the common name of its certificate.

Must never be asked without a proven name; without certificates services live on one machine only.
"""

from __future__ import annotations

from typing import Any

from inferx.errors import Forbidden

# The names that certificates carry; a node agent's is `node:` and the name of its node.
GATEWAY, SCHEDULER, STATE, OPERATOR, NODE = "gateway", "scheduler", "statesvc", "operator", "node"
_SERVICES = frozenset({GATEWAY, SCHEDULER, STATE, OPERATOR, NODE})

# service -> who may call its methods; what is not here is refused
_CALLERS: dict[str, frozenset[str]] = {
    "ixmeta.IxMetaService": _SERVICES,
    "ixmeta.IxLeaseService": frozenset({GATEWAY, SCHEDULER, NODE, OPERATOR}),
    "na.SchedulerService": frozenset({GATEWAY, OPERATOR}),
    "na.NodeAgentService": frozenset({SCHEDULER, OPERATOR}),
}
_ALSO = {
    "/na.NodeAgentService/ReadPodLog": frozenset({GATEWAY}),
    "/na.NodeAgentService/StreamPodLog": frozenset({GATEWAY}),
}
_WRITERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("tenant", "namespace", "function", "funcpolicy", "apikey", "gateway"),
        frozenset({GATEWAY, OPERATOR}),
    ),
    **dict.fromkeys(("scheduler", "pod", "snapshot"), frozenset({SCHEDULER, OPERATOR})),
    "node": frozenset({NODE, OPERATOR}),
}
_NODE_READS = frozenset({"node", "scheduler"})
"""What a node's agent sees of the objects: neither functions nor keys."""


def callers(service: str) -> list[str]:
    """The common names that may call the methods of `service`."""
    return sorted(_CALLERS[service])


def check(method: str, request: Any, names: list[str]) -> None:
    """Raises `Forbidden` unless the peer with these common names may make this request."""
    name = names[0] if len(names) == 1 else ""
    role, _, node = name.partition(":")
    if role not in _SERVICES or (role == NODE) != bool(node):
        raise Forbidden(f"the certificate's name {name!r} is none of a service")
    service = method.strip("/").rpartition("/")[0]
    allowed = _CALLERS.get(service, frozenset()) | _ALSO.get(method, frozenset())
    if role not in allowed:
        raise Forbidden(f"{name} may not call {method}")
    if service == "ixmeta.IxMetaService":
        _check_object(method.rpartition("/")[2], request, role, node)


def _check_object(verb: str, request: Any, role: str, node: str) -> None:
    if verb in ("Version", "Uid"):
        return
    if verb in ("Get", "List", "Watch"):
        if role == NODE and request.obj_type not in _NODE_READS:
            raise Forbidden(f"a node's agent may not read objects of type {request.obj_type}")
        return
    if verb == "Delete":
        kind, name = request.obj_type, request.name
    else:
        kind, name = request.obj.kind, request.obj.name
    if role not in _WRITERS.get(kind, frozenset()):
        raise Forbidden(f"{role} may not write objects of type {kind}")
    if role == NODE and name != node:
        raise Forbidden(f"the agent of node {node} may not speak for node {name}")
